//! Perplexity: exp of the mean negative log-likelihood of the scored tokens. With chunks side by side it is that of llama-perplexity, to the
//! printed digit; which tokens are scored is said in `windows`.

use serde::Serialize;

use super::measure::{Options, measure_alone};
use super::statistics::{Estimate, Moments};
use super::windows::{Cut, Windows};
use crate::Result;
use crate::llama::Model;
use crate::util::progress::Progress;

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
    /// Chunks (or windows) run.
    pub chunks: u64,
    /// Tokens of a chunk.
    pub ctx: u32,
    /// How far the window moved; `None` for chunks side by side.
    pub stride: Option<u32>,
    /// The perplexity after each chunk.
    pub running: Vec<f64>,
    /// The mean negative log-likelihood of each chunk's tokens, in nats; chunks side by side score as many each.
    pub chunk_nll: Vec<f64>,
}

impl Perplexity {
    /// The value with its error.
    pub fn estimate(&self) -> Estimate {
        Estimate { value: self.value, error: self.error }
    }
}

/// Measures the perplexity of `model` on `text`, in chunks side by side.
///
/// # Errors
/// What [`Windows::new`] and [`super::measure()`] refuse.
pub fn perplexity(
    model: &Model,
    text: &str,
    options: &PerplexityOptions,
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let windows = Windows::new(model, text, Cut { ctx: options.ctx, chunks: options.chunks, stride: None })?;
    measure_alone(model, &windows, Options { threads: options.threads, simulation: None }, progress)
}

/// Likelihoods, summed up chunk by chunk.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    pub(super) all: Moments,
    running: Vec<f64>,
    chunk_nll: Vec<f64>,
}

impl Sums {
    /// Adds the negative log-likelihoods of a chunk.
    pub(super) fn add_chunk(&mut self, scores: impl Iterator<Item = f64>) {
        let mut chunk = Moments::default();
        for score in scores {
            chunk.add(score);
            self.all.add(score);
        }
        self.running.push(self.all.mean().exp());
        self.chunk_nll.push(chunk.mean());
    }

    pub(super) fn perplexity(self, cut: Cut) -> Perplexity {
        let nll = self.all.estimate();
        let Estimate { value, error } = nll.exp();
        Perplexity {
            value,
            error,
            nll: nll.value,
            tokens: self.all.count,
            chunks: self.running.len() as u64,
            ctx: cut.ctx,
            stride: cut.stride,
            running: self.running,
            chunk_nll: self.chunk_nll,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_give_their_exponential() {
        let mut sums = Sums::default();
        sums.add_chunk([4f64.ln(); 6].into_iter());
        sums.add_chunk([4f64.ln(); 6].into_iter());
        let result = sums.perplexity(Cut { ctx: 14, chunks: None, stride: None });
        assert!((result.value - 4.0).abs() < 1e-9 && result.error < 1e-6, "{result:?}");
        assert_eq!((result.tokens, result.chunks, result.running.len()), (12, 2, 2));
    }

    #[test]
    fn chunks_keep_their_own_means() {
        let mut sums = Sums::default();
        sums.add_chunk([1.0, 3.0].into_iter());
        sums.add_chunk([5.0, 7.0].into_iter());
        let result = sums.perplexity(Cut { ctx: 6, chunks: None, stride: None });
        assert_eq!((result.chunk_nll, result.nll), (vec![2.0, 6.0], 4.0));
        assert_eq!(result.running, [2f64.exp(), 4f64.exp()]);
    }
}
