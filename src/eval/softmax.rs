//! What is computed from rows of logits: likelihoods and what two rows differ by. One row or pair of rows at a time; sums over rows are made elsewhere.
//!
//! Exponentials are taken in f32 and summed in f64, in sixteen interleaved sums, so that compilers turn the loops into vector code and the result
//! depends on nothing but the row.

use super::base_file::StoredRow;

/// Elements that are worked on at once.
const LANES: usize = 16;

/// Below this `exp` gives 0 (the smallest normal f32 lies just below e^-87).
const SMALLEST: f32 = -87.0;

/// e^x for x <= 0, to two units in the last place; 0 below -87, NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln(2) / 2, a polynomial of degree 7 for e^r (the Taylor series; its error is below 2^-27), n into the exponent.
#[inline]
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with 9 bits of zeros at its end, so that its product with n is exact.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    const TAYLOR: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2.0 - n * LN2.1;
    let power = TAYLOR.iter().fold(0.0, |sum, c| sum * r + c);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < SMALLEST { 0.0 } else { power * scale }
}

/// The largest of a row.
fn largest(row: &[f32]) -> f32 {
    let blocks = row.chunks_exact(LANES);
    let rest = blocks.remainder();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (lane, &value) in lanes.iter_mut().zip(block) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &value| if value > max { value } else { max })
}

/// The first place of the largest of a row.
fn top(row: &[f32], max: f32) -> usize {
    row.iter().position(|&value| value == max).unwrap_or(0)
}

/// Σ of what `term` makes of each element and its place, in f64.
#[inline]
fn sum<const N: usize>(len: usize, term: impl Fn(usize) -> [f32; N]) -> [f64; N] {
    let mut lanes = [[0.0f64; LANES]; N];
    let whole = len - len % LANES;
    for start in (0..whole).step_by(LANES) {
        let terms: [[f32; N]; LANES] = std::array::from_fn(|lane| term(start + lane));
        for (i, sums) in lanes.iter_mut().enumerate() {
            for (sum, term) in sums.iter_mut().zip(&terms) {
                *sum += f64::from(term[i]);
            }
        }
    }
    let mut sums = lanes.map(|sums| sums.iter().sum::<f64>());
    for at in whole..len {
        sums.iter_mut().zip(term(at)).for_each(|(sum, term)| *sum += f64::from(term));
    }
    sums
}

/// The largest logit of `row` and ln Σ e^(logit - largest).
fn log_sum(row: &[f32]) -> (f32, f64) {
    let max = largest(row);
    let [total] = sum(row.len(), |at| [exp(row[at] - max)]);
    (max, total.ln())
}

/// -ln of the probability that the softmax of `row` gives to `target`; NaN or infinite if a logit is not finite.
pub(super) fn negative_log_likelihood(row: &[f32], target: usize) -> f64 {
    let (max, log_sum) = log_sum(row);
    log_sum - f64::from(row[target] - max)
}

/// What two rows of logits for one position say about the token that follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Compared {
    /// -ln of its probability.
    pub(super) nll: f64,
    /// The same of the reference.
    pub(super) nll_base: f64,
    /// Σ p_base ln(p_base / p) over the vocabulary.
    pub(super) kld: f64,
    /// Its probability less that of the reference.
    pub(super) p_diff: f64,
    /// Whether both give the largest probability to the same token.
    pub(super) same_top: bool,
}

/// Compares the logits of two models over one vocabulary. No term is left out.
///
/// With q and p the logits less their largest: KLD = Σ e^p (p - q) / Σ e^p + ln Σ e^q - ln Σ e^p, so that one pass does.
pub(super) fn compare(row: &[f32], base: &[f32], target: usize) -> Compared {
    let (max, max_base) = (largest(row), largest(base));
    let base = &base[..row.len()];
    let [total, total_base, difference] = sum(row.len(), |at| {
        let (q, p) = (row[at] - max, base[at] - max_base);
        let weight = exp(p);
        [exp(q), weight, if weight > 0.0 { weight * (p - q) } else { weight }]
    });
    let nll = total.ln() - f64::from(row[target] - max);
    let nll_base = total_base.ln() - f64::from(base[target] - max_base);
    Compared {
        nll,
        nll_base,
        kld: difference / total_base + total.ln() - total_base.ln(),
        p_diff: (-nll).exp() - (-nll_base).exp(),
        same_top: top(row, max) == top(base, max_base),
    }
}

/// Terms of the reference with a smaller log-probability are left out, as in llama-perplexity.
const LEAST_LOG_PROBABILITY: f32 = -16.0;

/// Compares logits with log-probabilities from a file, in the arithmetic of llama-perplexity: f32 but for the sums.
pub(super) fn compare_stored(row: &[f32], base: &StoredRow<'_>, target: usize) -> Compared {
    let (max, log_sum) = log_sum(row);
    let log_sum = log_sum as f32;
    let codes = &base.codes[..row.len()];
    let log_base = |at: usize| base.scale * f32::from(codes[at]) + base.least;
    let total = max + log_sum;
    let [kld] = sum(row.len(), |at| {
        let log_p = log_base(at);
        let term = exp(log_p) * (log_p - row[at] + total);
        [if log_p > LEAST_LOG_PROBABILITY { term } else { 0.0 }]
    });
    let (nll, nll_base) = (max + log_sum - row[target], -log_base(target));
    let top_code = codes.iter().copied().max().unwrap_or(0);
    let top_base = codes.iter().position(|&code| code == top_code);
    Compared {
        nll: f64::from(nll),
        nll_base: f64::from(nll_base),
        kld,
        p_diff: f64::from((-nll).exp() - (-nll_base).exp()),
        same_top: top_base == Some(top(row, max)),
    }
}

/// The 16-bit form of a row of logits: writes codes to `codes` and returns the step, the least log-probability (both f32) and the negative
/// log-likelihood of `target`.
///
/// Codes are steps above the least log-probability, which is the smallest but at most 16 below the largest; arithmetic as in llama-perplexity.
pub(super) fn store(row: &[f32], target: usize, codes: &mut [u16]) -> (f32, f32, f64) {
    /// How far below the largest logit the codes reach.
    const RANGE: f32 = 16.0;
    let (max, log_sum) = log_sum(row);
    let smallest = row.iter().copied().fold(f32::INFINITY, f32::min);
    let min = smallest.max(max - RANGE);
    let log_sum = log_sum as f32;
    let scale = (max - min) / 65535.0;
    let inverse = 1.0 / scale;
    for (code, &logit) in codes.iter_mut().zip(row) {
        *code = if scale > 0.0 && logit > min { (inverse * (logit - min)).round_ties_even() as u16 } else { 0 };
    }
    (scale, min - max - log_sum, f64::from(max + log_sum - row[target]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Units in the last place that `exp` may be off.
    const EXP_ULPS: i64 = 2;

    /// Relative error of sums of f32 exponentials, and absolute error of differences of their logarithms.
    const SUM_TOLERANCE: f64 = 1e-6;

    #[test]
    fn the_exponential_is_that_of_the_library() {
        for step in 0..870_000 {
            let x = step as f32 * -1e-4;
            let off = i64::from(exp(x).to_bits()) - i64::from((f64::from(x).exp() as f32).to_bits());
            assert!(off.abs() <= EXP_ULPS, "e^{x}: {off} ulps");
        }
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn log_softmax_is_the_definition_and_survives_large_logits() {
        let expected = -(1.0f64 / (1.0 + (-1.0f64).exp())).ln();
        assert!((negative_log_likelihood(&[1e4, 1e4 - 1.0], 0) - expected).abs() < SUM_TOLERANCE);
        assert!(!negative_log_likelihood(&[1.0, f32::NAN], 0).is_finite());
        assert!(!negative_log_likelihood(&[1.0, f32::INFINITY], 0).is_finite());
        let masked = negative_log_likelihood(&[1.0, f32::NEG_INFINITY], 0);
        assert_eq!(masked, 0.0);
    }

    /// The textbook: probabilities in f64, sums over all.
    fn naive(row: &[f32], base: &[f32], target: usize) -> Compared {
        let logs = |row: &[f32]| {
            let max = row.iter().fold(f64::NEG_INFINITY, |max, &v| max.max(f64::from(v)));
            let total: f64 = row.iter().map(|&v| (f64::from(v) - max).exp()).sum();
            row.iter().map(|&v| f64::from(v) - max - total.ln()).collect::<Vec<f64>>()
        };
        let (q, p) = (logs(row), logs(base));
        let best = |v: &[f64]| (0..v.len()).rev().max_by(|&a, &b| v[a].total_cmp(&v[b])).unwrap();
        Compared {
            nll: -q[target],
            nll_base: -p[target],
            kld: p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum(),
            p_diff: q[target].exp() - p[target].exp(),
            same_top: best(&q) == best(&p),
        }
    }

    fn close(a: &Compared, b: &Compared, tolerance: f64) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= tolerance * (1.0 + b.abs());
        near(a.nll, b.nll) && near(a.nll_base, b.nll_base) && near(a.kld, b.kld) && near(a.p_diff, b.p_diff)
    }

    proptest! {
        #[test]
        fn two_rows_differ_by_what_the_textbook_says(
            rows in prop::collection::vec((-20f32..20.0, -20f32..20.0), 1..100), pick in 0usize..100
        ) {
            let (row, base): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let target = pick % row.len();
            let (got, expected) = (compare(&row, &base, target), naive(&row, &base, target));
            prop_assert!(close(&got, &expected, SUM_TOLERANCE), "{got:?} {expected:?}");
            prop_assert_eq!(got.same_top, expected.same_top);
            prop_assert!((negative_log_likelihood(&row, target) - expected.nll).abs() < SUM_TOLERANCE * 20.0);
        }

        #[test]
        fn a_stored_row_says_nearly_the_same(
            rows in prop::collection::vec((-5f32..5.0, -5f32..5.0), 2..100), pick in 0usize..100
        ) {
            let (row, base): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let target = pick % row.len();
            let mut codes = vec![0; base.len()];
            let (scale, least, nll_base) = store(&base, target, &mut codes);
            let got = compare_stored(&row, &StoredRow { scale, least, codes: &codes }, target);
            let expected = naive(&row, &base, target);
            // Half a step of 10 / 65535.
            prop_assert!(close(&got, &expected, 2e-4), "{got:?} {expected:?}");
            prop_assert!((nll_base - expected.nll_base).abs() < 1e-5);
        }
    }

    #[test]
    fn a_model_differs_from_itself_by_nothing() {
        let row: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let same = compare(&row, &row, 17);
        assert_eq!((same.kld, same.p_diff, same.same_top), (0.0, 0.0, true));
    }

    #[test]
    fn codes_are_steps_above_the_least() {
        // Largest 0, smallest -20: the codes reach down to -16 in 65535 steps.
        let mut codes = [7; 4];
        let (scale, least, _) = store(&[0.0, -8.0, -16.0, -20.0], 0, &mut codes);
        assert_eq!(codes, [65535, 32768, 0, 0]); // 32767.5 to even
        assert!((scale - 16.0 / 65535.0).abs() < 1e-9 && (least + 16.0 + (-8f32).exp().ln_1p()).abs() < 1e-5);
        let mut flat = [7; 3];
        assert_eq!(store(&[2.0; 3], 1, &mut flat).0, 0.0);
        assert_eq!(flat, [0; 3]);
    }
}
