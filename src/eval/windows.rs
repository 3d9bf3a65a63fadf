//! Which tokens a model sees at once and which of them are scored: chunks that do not overlap, or a window that slides. Tokens only; no model runs here.

use super::base_file::{LogitsReader, first_scored};
use crate::Result;
use crate::corpus::Corpus;
use crate::error::ModelError;
use crate::llama::Model;

/// Tokens of a window, at least.
const MIN_CTX: u32 = 4;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Tokens of a window.
    pub ctx: u32,
    /// Windows, at most; `None` takes all.
    pub chunks: Option<usize>,
    /// `None`: as llama-perplexity, windows side by side, each begun with BOS where the vocabulary begins texts with it, the second half scored,
    /// what is left over at the end dropped. Otherwise a window that moves on by so many tokens: the first scores every token but its own
    /// first, the others the last `stride`, the last what is left, so that each token of the text is scored once.
    pub stride: Option<u32>,
}

/// One forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// What the model sees.
    pub(super) tokens: Vec<i32>,
    /// The logits at this position and after score the tokens that follow them.
    pub(super) first: usize,
}

impl Window {
    /// The tokens that are scored.
    pub(super) fn targets(&self) -> &[i32] {
        &self.tokens[self.first + 1..]
    }
}

/// A text, tokenised and cut.
#[derive(Debug, Clone)]
pub struct Windows {
    tokens: Vec<i32>,
    bos: Option<i32>,
    cut: Cut,
    count: usize,
}

impl Windows {
    /// Tokenises `text` for `model` and cuts it.
    ///
    /// # Errors
    /// [`ModelError::TextTooShort`]: chunks need a text of two (llama-perplexity's rule), a sliding window one of two tokens.
    pub fn new(model: &Model, text: &str, cut: Cut) -> Result<Self> {
        let tokens = model.tokenize(text, true, false)?;
        Self::from_tokens(tokens, model.adds_bos().then(|| model.bos()), cut)
    }

    /// As [`Self::new`], for a corpus, which says where its text spells control tokens.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(model: &Model, corpus: &Corpus, cut: Cut) -> Result<Self> {
        Self::from_tokens(corpus.tokenize(model)?, model.adds_bos().then(|| model.bos()), cut)
    }

    /// The chunks of a file of log-probabilities; `model` says what begins them.
    pub(super) fn of_file(reader: &LogitsReader, model: &Model, chunks: Option<usize>) -> Self {
        let shape = reader.shape();
        let cut = Cut { ctx: shape.ctx as u32, chunks, stride: None };
        let bos = model.adds_bos().then(|| model.bos());
        let count = chunks.unwrap_or(shape.chunks).clamp(1, shape.chunks);
        Self { tokens: reader.tokens().to_vec(), bos, cut, count }
    }

    fn from_tokens(tokens: Vec<i32>, bos: Option<i32>, mut cut: Cut) -> Result<Self> {
        cut.ctx = cut.ctx.max(MIN_CTX);
        let ctx = cut.ctx as usize;
        let needed = if cut.stride.is_some() { 2 } else { 2 * ctx };
        if tokens.len() < needed {
            return Err(ModelError::TextTooShort { tokens: tokens.len(), needed }.into());
        }
        cut.stride = cut.stride.map(|stride| stride.clamp(1, cut.ctx - 1));
        let all = match cut.stride {
            None => tokens.len() / ctx,
            Some(stride) => 1 + tokens.len().saturating_sub(ctx).div_ceil(stride as usize),
        };
        Ok(Self { tokens, bos, cut, count: cut.chunks.unwrap_or(all).clamp(1, all) })
    }

    /// How many windows are used.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The tokens of the whole text.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// How the text was cut.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// Tokens that the model will see, in all windows together.
    pub(super) fn total(&self) -> u64 {
        (0..self.count).map(|index| self.range(index).len() as u64).sum()
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        let ctx = self.cut.ctx as usize;
        let start = index * self.cut.stride.unwrap_or(self.cut.ctx) as usize;
        start..(start + ctx).min(self.tokens.len())
    }

    /// Window `index`.
    ///
    /// # Panics
    /// If there is no such window.
    pub(super) fn get(&self, index: usize) -> Window {
        assert!(index < self.count, "window {index} of {}", self.count);
        let ctx = self.cut.ctx as usize;
        let mut tokens = self.tokens[self.range(index)].to_vec();
        let first = match (self.cut.stride, index) {
            (None, _) => {
                if let Some(bos) = self.bos {
                    tokens[0] = bos;
                }
                first_scored(ctx)
            }
            (Some(_), 0) => 0,
            (Some(stride), _) => ctx - stride as usize - 1,
        };
        Window { tokens, first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(tokens: i32, stride: Option<u32>) -> Result<Windows> {
        Windows::from_tokens((100..100 + tokens).collect(), Some(1), Cut { ctx: 8, chunks: None, stride })
    }

    #[test]
    fn chunks_are_those_of_llama_perplexity() {
        let chunks = windows(23, None).unwrap();
        assert_eq!((chunks.len(), chunks.total()), (2, 16));
        let second = chunks.get(1);
        assert_eq!(second, Window { tokens: vec![1, 109, 110, 111, 112, 113, 114, 115], first: 4 });
        assert_eq!(second.targets(), [113, 114, 115]);
        assert!(windows(15, None).unwrap_err().to_string().contains("15 tokens"));
    }

    #[test]
    fn a_sliding_window_scores_each_token_once() {
        for (tokens, stride) in [(23, 4), (8, 4), (9, 4), (12, 4), (40, 1), (41, 7), (3, 4), (25, 3)] {
            let all = windows(tokens, Some(stride)).unwrap();
            let scored: Vec<i32> = (0..all.len()).flat_map(|i| all.get(i).targets().to_vec()).collect();
            let expected: Vec<i32> = (101..100 + tokens).collect();
            assert_eq!(scored, expected, "{tokens} tokens, stride {stride}");
        }
        // By hand: 12 tokens, windows 0..8 and 4..12; the second scores tokens 8 to 11 with the logits at its positions 3 to 6.
        let two = windows(12, Some(4)).unwrap();
        assert_eq!((two.len(), two.get(1).first, two.get(1).tokens[0]), (2, 3, 104));
        assert!(windows(1, Some(4)).is_err());
    }
}
