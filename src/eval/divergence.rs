//! How far a model's predictions are from those of a reference: everything that llama-perplexity prints, by its definitions.
//! Numbers in, numbers out; where the logits come from is no business of ours.

use serde::Serialize;

use super::perplexity::{Perplexity, Sums};
use super::softmax::Compared;
use super::statistics::{Estimate, Moments, Percentile, covariance, percentiles};
use super::windows::Cut;

/// A model against a reference, over the scored tokens of a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// The perplexity of the reference.
    pub base: Perplexity,
    /// Correlation of the two log-likelihoods, -1 to 1.
    pub correlation: f64,
    /// ln(PPL / PPL of the reference); this error and the next two know that both read the same text.
    pub ln_ratio: Estimate,
    /// PPL / PPL of the reference.
    pub ratio: Estimate,
    /// PPL - PPL of the reference.
    pub difference: Estimate,
    /// Kullback-Leibler divergence of the model from the reference, mean of the tokens, in nats.
    pub kld: Estimate,
    /// Its distribution over the tokens.
    pub kld_percentiles: Vec<Percentile>,
    /// Probability of the token that follows less that of the reference, mean of the tokens.
    pub p_diff: Estimate,
    /// Its distribution over the tokens.
    pub p_diff_percentiles: Vec<Percentile>,
    /// The root of the mean square of that difference.
    pub p_diff_rms: Estimate,
    /// The share of tokens for which both hold the same token most likely.
    pub same_top: Estimate,
    /// The mean divergence of each chunk's tokens.
    pub chunk_kld: Vec<f64>,
}

/// Comparisons, summed up chunk by chunk.
#[derive(Debug, Default)]
pub(super) struct DivergenceSums {
    base: Sums,
    products: f64,
    kld: Moments,
    p_diff: Moments,
    p_diff_sq: Moments,
    same_top: u64,
    klds: Vec<f32>,
    p_diffs: Vec<f32>,
    chunk_kld: Vec<f64>,
}

impl DivergenceSums {
    /// Adds the tokens of a chunk.
    pub(super) fn add_chunk(&mut self, tokens: &[Compared]) {
        self.base.add_chunk(tokens.iter().map(|token| token.nll_base));
        for token in tokens {
            self.products += token.nll * token.nll_base;
            self.kld.add(token.kld);
            self.p_diff.add(token.p_diff);
            self.p_diff_sq.add(token.p_diff * token.p_diff);
            self.same_top += u64::from(token.same_top);
        }
        self.klds.extend(tokens.iter().map(|token| token.kld as f32));
        self.p_diffs.extend(tokens.iter().map(|token| token.p_diff as f32));
        self.chunk_kld.push(tokens.iter().map(|token| token.kld).sum::<f64>() / tokens.len() as f64);
    }

    /// Whether all sums are numbers.
    pub(super) fn is_finite(&self) -> bool {
        self.kld.sum.is_finite() && self.products.is_finite()
    }

    /// The result for a model with the log-likelihoods `nll`.
    pub(super) fn divergence(mut self, nll: &Moments, cut: Cut) -> Divergence {
        let (log, log_base) = (nll.estimate(), self.base.all.estimate());
        let (ppl, ppl_base) = (log.exp(), log_base.exp());
        let shared = covariance(nll, &self.base.all, self.products);
        let errors = log.error * log_base.error;
        let apart = |a: Estimate, b: Estimate, shared: f64| Estimate {
            value: a.value - b.value,
            error: (a.error.powi(2) + b.error.powi(2) - 2.0 * shared).max(0.0).sqrt(),
        };
        let ln_ratio = apart(log, log_base, shared);
        Divergence {
            correlation: if errors > 0.0 { shared / errors } else { 1.0 },
            ln_ratio,
            ratio: ln_ratio.exp(),
            difference: apart(ppl, ppl_base, ppl.value * ppl_base.value * shared),
            kld: self.kld.estimate(),
            kld_percentiles: percentiles(&mut self.klds),
            p_diff: self.p_diff.estimate(),
            p_diff_percentiles: percentiles(&mut self.p_diffs),
            p_diff_rms: root(self.p_diff_sq.estimate()),
            same_top: share(self.same_top, self.kld.count),
            chunk_kld: self.chunk_kld,
            base: self.base.perplexity(cut),
        }
    }
}

/// The root, and its error to first order.
fn root(square: Estimate) -> Estimate {
    let value = square.value.sqrt();
    Estimate { value, error: if value > 0.0 { 0.5 / value * square.error } else { 0.0 } }
}

/// A share of `count`, and its binomial error.
fn share(hits: u64, count: u64) -> Estimate {
    let value = hits as f64 / count as f64;
    let error = if count > 1 { (value * (1.0 - value) / (count - 1) as f64).sqrt() } else { 0.0 };
    Estimate { value, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Cut = Cut { ctx: 26, chunks: None, stride: None };

    fn token(nll: f64, nll_base: f64, kld: f64, p_diff: f64, same_top: bool) -> Compared {
        Compared { nll, nll_base, kld, p_diff, same_top }
    }

    /// Twelve tokens whose means and variances are easily told.
    fn worked() -> (Divergence, Moments) {
        let tokens: Vec<Compared> = (0..12)
            .map(|i| {
                let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
                token(3.0 + sign, 2.0 + 2.0 * sign, 0.5 + 0.5 * sign, 0.1 * sign, i < 9)
            })
            .collect();
        let (mut sums, mut nll) = (DivergenceSums::default(), Moments::default());
        sums.add_chunk(&tokens);
        for token in &tokens {
            nll.add(token.nll);
        }
        (sums.divergence(&nll, CUT), nll)
    }

    #[test]
    fn errors_know_that_both_read_the_same_text() {
        let (result, _) = worked();
        let unit = (1.0f64 / 11.0).sqrt();
        // Errors 1 and 2 units, fully correlated: that of the difference is one unit.
        assert!((result.correlation - 1.0).abs() < 1e-12);
        assert!((result.ln_ratio.value - 1.0).abs() < 1e-12 && (result.ln_ratio.error - unit).abs() < 1e-12);
        assert!((result.ratio.error - 1f64.exp() * unit).abs() < 1e-12);
        let (ppl, base) = (3f64.exp(), 2f64.exp());
        assert!((result.difference.value - (ppl - base)).abs() < 1e-9);
        assert!((result.difference.error - (ppl - 2.0 * base).abs() * unit).abs() < 1e-9);
    }

    #[test]
    fn tokens_are_counted_and_averaged() {
        let (result, _) = worked();
        let unit = (1.0f64 / 11.0).sqrt();
        assert_eq!((result.kld.value, result.same_top.value), (0.5, 0.75));
        assert!((result.kld.error - 0.5 * unit).abs() < 1e-12);
        assert!((result.same_top.error - (0.75f64 * 0.25 / 11.0).sqrt()).abs() < 1e-12);
        assert!((result.p_diff_rms.value - 0.1).abs() < 1e-12 && result.p_diff.value.abs() < 1e-12);
        assert_eq!((result.kld_percentiles[0].value, result.kld_percentiles.last().unwrap().value), (1.0, 0.0));
        assert_eq!((result.base.tokens, result.chunk_kld), (12, vec![0.5]));
    }
}
