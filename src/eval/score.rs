//! What a comparison keeps of a measurement. Everything else of it is in the record of `eval`.

use serde::Serialize;

use super::{Estimate, Measured};

/// What one model scored on one data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error, tokens taken for independent.
    pub error: f64,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Chunks run.
    pub chunks: u64,
    /// Tokens of a chunk.
    pub ctx: u32,
    /// The mean negative log-likelihood of each chunk's tokens, in nats.
    pub chunk_nll: Vec<f64>,
    /// How far it is from the baseline, where that was measured.
    #[serde(flatten)]
    pub divergence: Option<ScoreDivergence>,
}

/// How far a candidate's predictions are from the baseline's on one data set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScoreDivergence {
    /// Mean KL divergence from the baseline, in nats.
    pub kld: Estimate,
    /// The share of tokens for which both have the same most likely one.
    pub same_top: Estimate,
}

impl From<Measured> for Score {
    fn from(measured: Measured) -> Self {
        let divergence = measured.divergence.map(|d| ScoreDivergence { kld: d.kld, same_top: d.same_top });
        let measured = measured.perplexity;
        Self {
            perplexity: measured.value,
            error: measured.error,
            nll: measured.nll,
            tokens: measured.tokens,
            chunks: measured.chunks,
            ctx: measured.ctx,
            chunk_nll: measured.chunk_nll,
            divergence,
        }
    }
}
