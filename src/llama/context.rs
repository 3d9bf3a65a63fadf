//! A running model: one sequence, decoded batch after batch, watched or not. Sampling and several sequences are no business of ours.

use super::ffi::RawContext;
use super::{ContextOptions, Logits, Model, Observer};
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
}

impl<'m> Context<'m> {
    /// Prepares `model` to run.
    ///
    /// # Errors
    /// [`LlamaError::Context`] with llama.cpp's reason (memory, mostly).
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Self> {
        let raw = RawContext::new(model, options)?;
        let vocab = i32::try_from(model.vocab_size()).unwrap_or(i32::MAX);
        Ok(Self { raw, options: *options, vocab, position: 0, outputs: 0 })
    }

    /// Appends `tokens` to the sequence and computes the asked logits.
    ///
    /// # Errors
    /// [`LlamaError::Tokens`] for no, too many or unknown tokens, [`LlamaError::Decode`] for what llama.cpp refuses.
    pub fn decode(&mut self, tokens: &[i32], logits: Logits) -> Result<()> {
        self.check(tokens)?;
        self.outputs = 0;
        self.raw.decode(tokens, self.position, |index| logits.wants(index), None)?;
        self.position += tokens.len();
        self.outputs = (0..tokens.len()).filter(|&index| logits.wants(index)).count();
        Ok(())
    }

    /// Appends `tokens` to the sequence while `observer` watches, one graph of at most `ubatch` tokens after the other.
    ///
    /// Every token counts as an output, so that the last layers see all rows too; but the graph is left as soon as the last node that
    /// the observer wanted is done (the first graph shows which that is), so the output head costs nothing and there are no logits.
    ///
    /// # Errors
    /// As [`Self::decode`]; what the observer returned; [`LlamaError::Panicked`] if it panicked. The sequence is of no use then
    /// until [`Self::clear`].
    pub fn decode_observed(&mut self, tokens: &[i32], observer: &mut dyn Observer) -> Result<()> {
        if !self.options.observe {
            return Err(LlamaError::NotObserving.into());
        }
        self.check(tokens)?;
        self.outputs = 0;
        for piece in tokens.chunks(self.options.ubatch.max(1) as usize) {
            observer.begin_graph(piece.len());
            self.raw.decode(piece, self.position, |_| true, Some(&mut *observer))?;
            self.position += piece.len();
        }
        Ok(())
    }

    /// The logits of the last [`Self::decode`]: a row of vocabulary size for each token that was to get some, in order.
    pub fn logits(&mut self) -> &[f32] {
        self.raw.logits(self.outputs * self.vocab as usize)
    }

    /// Forgets the sequence.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.position = 0;
        self.outputs = 0;
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
