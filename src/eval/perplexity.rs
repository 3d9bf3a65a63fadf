//! Perplexity as llama-perplexity defines it, to the printed digit: the text in chunks that do not overlap, each begun with BOS, the second half scored.
//!
//! For a chunk of `ctx` tokens the logits at positions `ctx / 2 ..= ctx - 2` are scored against the token that follows, `ctx - 1 - ctx / 2` tokens of each chunk.
//! The standard error takes the tokens for independent, as there.

use rayon::prelude::*;
use serde::Serialize;

use crate::corpus::chunks::Chunks;
use crate::error::ModelError;
use crate::llama::{Context, ContextOptions, Logits, Model};
use crate::util::progress::{Progress, Unit};
use crate::{Error, Result};

/// Tokens of one graph at most, as in llama.cpp's tools.
const UBATCH: u32 = 512;

/// How perplexity is measured.
#[derive(Debug, Clone, Copy)]
pub struct PerplexityOptions {
    /// Tokens of a chunk.
    pub ctx: u32,
    /// Chunks, at most; `None` takes all.
    pub chunks: Option<usize>,
    /// Threads; 0 takes all.
    pub threads: u32,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        Self { ctx: 512, chunks: None, threads: 0 }
    }
}

/// The perplexity of a model on a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    #[serde(rename = "perplexity")]
    pub value: f64,
    /// Its standard error.
    pub error: f64,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Chunks run.
    pub chunks: u64,
    /// Tokens of a chunk.
    pub ctx: u32,
    /// The perplexity after each chunk.
    pub running: Vec<f64>,
    /// The mean negative log-likelihood of each chunk's tokens, in nats; every chunk scores as many.
    pub chunk_nll: Vec<f64>,
}

/// Measures the perplexity of `model` on `text`.
///
/// # Errors
/// [`ModelError::TextTooShort`] unless the text fills two chunks (llama-perplexity's rule), logits that are
/// not finite, what llama.cpp refuses, and [`Error::Interrupted`].
pub fn perplexity(
    model: &Model,
    text: &str,
    options: &PerplexityOptions,
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let ctx = options.ctx.max(4);
    let chunks = Chunks::new(model, text, ctx)?;
    if chunks.len() < 2 {
        return Err(ModelError::TextTooShort { tokens: chunks.tokens().len(), needed: 2 * ctx as usize }.into());
    }
    let count = options.chunks.unwrap_or(chunks.len()).clamp(1, chunks.len());
    let first = ctx as usize / 2;
    let settings = ContextOptions { ubatch: ctx.min(UBATCH), threads: options.threads, ..ContextOptions::new(ctx) };
    let mut context = Context::new(model, &settings)?;
    let (mut sums, mut running, mut chunk_nll) =
        (Sums::default(), Vec::with_capacity(count), Vec::with_capacity(count));
    progress.begin("perplexity", count as u64 * u64::from(ctx), Unit::Tokens);
    for index in 0..count {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        let tokens = chunks.get(index);
        context.clear();
        context.decode(&tokens, Logits::From(first))?;
        chunk_nll.push(sums.add_chunk(context.logits(), model.vocab_size(), &tokens[first + 1..]));
        if !sums.nll.is_finite() {
            return Err(ModelError::LogitsNotFinite { path: model.path().to_path_buf(), chunk: index }.into());
        }
        running.push(sums.mean().exp());
        progress.advance(u64::from(ctx));
    }
    progress.end();
    Ok(sums.perplexity(ctx, running, chunk_nll))
}

/// Sums of negative log-likelihoods and of their squares.
#[derive(Debug, Default)]
struct Sums {
    nll: f64,
    nll_sq: f64,
    tokens: u64,
}

impl Sums {
    /// Adds the tokens that follow the first `targets.len()` rows of logits, and gives their mean negative log-likelihood.
    fn add_chunk(&mut self, logits: &[f32], vocab: usize, targets: &[i32]) -> f64 {
        let scores: Vec<f64> = logits
            .par_chunks_exact(vocab)
            .zip(targets)
            .map(|(row, &target)| -log_softmax(row, target as usize))
            .collect();
        for &score in &scores {
            self.nll += score;
            self.nll_sq += score * score;
            self.tokens += 1;
        }
        scores.iter().sum::<f64>() / scores.len() as f64
    }

    fn mean(&self) -> f64 {
        self.nll / self.tokens as f64
    }

    fn perplexity(&self, ctx: u32, running: Vec<f64>, chunk_nll: Vec<f64>) -> Perplexity {
        let (nll, count) = (self.mean(), self.tokens as f64);
        let variance = self.nll_sq / count - nll * nll;
        let error = (variance.max(0.0) / (count - 1.0)).sqrt();
        Perplexity {
            value: nll.exp(),
            error: error * nll.exp(),
            nll,
            tokens: self.tokens,
            chunks: running.len() as u64,
            ctx,
            running,
            chunk_nll,
        }
    }
}

/// The logarithm of the probability that the softmax of `logits` gives to `target`; exponentials in f32, their sum in f64, as in llama-perplexity.
fn log_softmax(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    f64::from(logits[target] - max) - sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_logits_give_the_vocabulary_size() {
        let mut sums = Sums::default();
        sums.add_chunk(&[2.5; 12], 4, &[0, 3, 1]);
        let result = sums.perplexity(6, vec![4.0], vec![]);
        assert!((result.value - 4.0).abs() < 1e-6 && result.error < 1e-3, "{result:?}");
        assert_eq!(result.tokens, 3);
    }

    #[test]
    fn log_softmax_is_the_definition_and_survives_large_logits() {
        let expected = (1.0f64 / (1.0 + (-1.0f64).exp())).ln();
        assert!((log_softmax(&[1e4, 1e4 - 1.0], 0) - expected).abs() < 1e-6);
    }

    #[test]
    fn the_error_is_that_of_a_mean() {
        // Two tokens with probabilities e^-1 and e^-3: mean 2, variance 1, standard error of the mean 1.
        let mut sums = Sums { nll: 4.0, nll_sq: 10.0, tokens: 2 };
        let result = sums.perplexity(4, vec![], vec![]);
        assert!((result.error - 2.0f64.exp()).abs() < 1e-9);
        sums.tokens = 1;
        assert!(sums.perplexity(4, vec![], vec![]).value.is_finite());
    }
}
