//! A running model: one sequence, decoded batch after batch, watched or not. Sampling and several sequences are no business of ours.

use super::ffi::{RawContext, ToTheEnd};
use super::{ContextOptions, Logits, Model, Observer, Watch};
use crate::Result;
use crate::error::LlamaError;

/// A model with its working memory.
#[derive(Debug)]
pub struct Context<'m> {
    raw: RawContext<'m>,
    options: ContextOptions,
    vocab: i32,
    position: usize,
    outputs: usize,
    /// Logits of a decode in several graphs.
    gathered: Vec<f32>,
}

impl<'m> Context<'m> {
    /// Prepares `model` to run.
    ///
    /// # Errors
    /// [`LlamaError::Context`] with llama.cpp's reason (memory, mostly).
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Self> {
        let raw = RawContext::new(model, options)?;
        let vocab = i32::try_from(model.vocab_size()).unwrap_or(i32::MAX);
        Ok(Self { raw, options: *options, vocab, position: 0, outputs: 0, gathered: Vec::new() })
    }

    /// Appends `tokens` to the sequence and computes the asked logits.
    ///
    /// # Errors
    /// [`LlamaError::Tokens`] for no, too many or unknown tokens, [`LlamaError::Decode`] for what llama.cpp refuses.
    pub fn decode(&mut self, tokens: &[i32], logits: Logits) -> Result<()> {
        self.check(tokens)?;
        self.outputs = 0;
        self.gathered.clear();
        self.raw.decode(tokens, self.position, |index| logits.wants(index), None)?;
        self.position += tokens.len();
        self.outputs = (0..tokens.len()).filter(|&index| logits.wants(index)).count();
        Ok(())
    }

    /// Appends `tokens` to the sequence while `observer` watches, one graph of at most `ubatch` tokens after the other.
    ///
    /// As [`Self::decode_watched`] without logits.
    ///
    /// # Errors
    /// As there.
    pub fn decode_observed(&mut self, tokens: &[i32], observer: &mut dyn Observer) -> Result<()> {
        self.decode_watched(tokens, Logits::None, Watch { observer: Some(observer), rewriter: None })
    }

    /// Appends `tokens` to the sequence while `watch` takes part, one graph of at most `ubatch` tokens after the other.
    ///
    /// With [`Logits::None`] every token counts as an output, so that the last layers see all rows; but each graph is left as soon as
    /// the last node that anybody wanted is done (the first graph shows which that is), so the output head costs nothing and there are no
    /// logits. Otherwise graphs run to their end, and from the last attention on only the rows of the asked tokens are computed.
    /// The nodes that an observer or rewriter wants may not change over the life of a context.
    ///
    /// # Errors
    /// As [`Self::decode`]; what those who take part returned; [`LlamaError::Panicked`] if one panicked; [`LlamaError::GraphChanged`] if
    /// llama.cpp built another graph than before. The sequence is of no use then until [`Self::clear`].
    pub fn decode_watched(&mut self, tokens: &[i32], logits: Logits, mut watch: Watch<'_>) -> Result<()> {
        if !self.options.observe {
            return Err(LlamaError::NotObserving.into());
        }
        self.check(tokens)?;
        self.outputs = 0;
        self.gathered.clear();
        let (size, mut start) = (self.options.ubatch.max(1) as usize, 0);
        let early = logits == Logits::None;
        for piece in tokens.chunks(size) {
            let watch = watch.reborrow();
            let wants = |index: usize| early || logits.wants(start + index);
            let outputs = if early { 0 } else { (0..piece.len()).filter(|&index| wants(index)).count() };
            self.raw.decode(piece, self.position, wants, Some((watch.begun(piece.len()), ToTheEnd(!early))))?;
            self.position += piece.len();
            start += piece.len();
            self.outputs += outputs;
            if tokens.len() > size {
                self.gathered.extend_from_slice(self.raw.logits(outputs * self.vocab as usize));
            }
        }
        Ok(())
    }

    /// The logits of the last decode: a row of vocabulary size for each token that was to get some, in order.
    pub fn logits(&mut self) -> &[f32] {
        if self.gathered.is_empty() { self.raw.logits(self.outputs * self.vocab as usize) } else { &self.gathered }
    }

    /// Forgets the sequence.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.position = 0;
        self.outputs = 0;
        self.gathered.clear();
    }

    fn check(&self, tokens: &[i32]) -> Result<()> {
        let limit = (self.options.batch as usize).min((self.options.ctx as usize).saturating_sub(self.position));
        let unknown = tokens.iter().copied().find(|token| !(0..self.vocab).contains(token));
        if tokens.is_empty() || tokens.len() > limit || unknown.is_some() {
            return Err(LlamaError::Tokens { count: tokens.len(), limit, unknown }.into());
        }
        Ok(())
    }
}
