//! The PRAQ family's importances of input and output channels.
//!
//! f is the activation function where one follows the matrix (the gate of a feed-forward network) and the identity elsewhere; the original applies
//! SiLU behind every matrix of a feed-forward network, up and down projections too, where there is none.

use crate::math::dots::product;
use crate::model::Function;

/// The range that importances of input channels are mapped onto.
const LOW: f64 = 0.1;
/// Its extent.
const EXTENT: f64 = 9.9;
/// A largest importance below this says nothing.
const NOTHING: f64 = 1e-10;
/// β: how sharply the risk grows.
const SHARPNESS: f64 = 3.0;
/// Rounding noise as a part of mean|X|·mean|w|.
const NOISE: f64 = 0.2;
/// τ: pre-activations below it count as suppressed.
pub const THRESHOLD: f64 = -3.0;

/// Maps importances linearly onto 0.1..=10; nothing if they are all alike, not finite, or as good as zero (the scale is then left to be all ones).
pub fn normalised(importance: &[f64]) -> Option<Vec<f64>> {
    let (min, max) = importance.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
    let usable = importance.iter().all(|v| v.is_finite()) && max >= NOTHING && max > min;
    usable.then(|| importance.iter().map(|v| LOW + EXTENT * (v - min) / (max - min)).collect())
}

/// E|f(z)| of one output channel over its pre-activations; 0 of none. A function that is not known counts as none.
pub fn magnitude(z: &[f32], function: Option<Function>) -> f64 {
    let one = |&z: &f32| f64::from(function.and_then(|f| f.apply(z)).unwrap_or(z)).abs();
    z.iter().map(one).sum::<f64>() / z.len().max(1) as f64
}

/// Adds the part of one output channel to the importances of the input channels: `into_j += magnitude * |w_j|`.
fn add_inputs(into: &mut [f64], magnitude: f64, weights: &[f32]) {
    into.iter_mut().zip(weights).for_each(|(sum, w)| *sum += magnitude * f64::from(w.abs()));
}

/// Importances of the input channels of some rows of a weight matrix: Σ_n E|f(z_n)|·|w_nj|, averaged over `inputs` (each a number of rows of the
/// activation, all as many). `bias` holds a value for each weight row, and `after` names the function that follows a row, by its index.
///
/// # Panics
/// If `weights` or an input is not whole rows of `columns` values, or the bias is of another length.
pub fn inputs(
    weights: &[f32],
    columns: usize,
    inputs: &[Vec<f32>],
    bias: Option<&[f32]>,
    after: impl Fn(usize) -> Option<Function>,
) -> Vec<f64> {
    assert!(weights.len().is_multiple_of(columns) && bias.is_none_or(|bias| bias.len() == weights.len() / columns));
    let mut magnitudes = vec![0.0; weights.len() / columns];
    for x in inputs.iter().filter(|x| !x.is_empty()) {
        assert!(x.len().is_multiple_of(columns));
        let mut z = product(weights, x, columns);
        for (row, z) in z.chunks_exact_mut(x.len() / columns).enumerate() {
            add_bias(z, bias, row);
            magnitudes[row] += magnitude(z, after(row)) / inputs.len() as f64;
        }
    }
    let mut sums = vec![0.0; columns];
    weights.chunks_exact(columns).zip(magnitudes).for_each(|(w, magnitude)| add_inputs(&mut sums, magnitude, w));
    sums
}

/// Adds the bias of output channel `row` to its pre-activations.
pub(super) fn add_bias(z: &mut [f32], bias: Option<&[f32]>, row: usize) {
    if let Some(bias) = bias {
        for z in z {
            *z += bias[row];
        }
    }
}

/// E|x| of each channel over rows of `columns` values; zeros of no rows.
pub fn mean_abs(rows: &[f32], columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    for row in rows.chunks_exact(columns) {
        row.iter().zip(&mut sums).for_each(|(x, sum)| *sum += f64::from(x.abs()));
    }
    let count = (rows.len() / columns.max(1)).max(1) as f64;
    sums.into_iter().map(|sum| sum / count).collect()
}

/// Weights of output channels, relative to their mean; ones if that is not positive.
pub fn relative(importance: &[f64]) -> Vec<f32> {
    let mean = importance.iter().sum::<f64>() / importance.len().max(1) as f64;
    let usable = mean > 0.0 && mean.is_finite();
    importance.iter().map(|v| if usable { (v / mean) as f32 } else { 1.0 }).collect()
}

/// Weights of output channels by a softmax at `temperature`, times their number; ones if the importances are not finite.
pub fn softmax(importance: &[f64], temperature: f64) -> Vec<f32> {
    let max = importance.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = importance.iter().map(|v| ((v - max) / temperature).exp()).collect();
    relative(&powers)
}

/// What FastRPRAQ knows of one output channel z = x·w + b.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Output {
    /// E\[z].
    pub mean: f64,
    /// The standard deviation of z (n).
    pub std: f64,
    /// E|z|.
    pub magnitude: f64,
    /// mean|w|.
    pub weight: f64,
}

impl Output {
    /// The numbers of a channel with the pre-activations `z` and the weights `weights`.
    pub fn of(z: &[f32], weights: &[f32]) -> Self {
        let over = |values: &[f32], of: &dyn Fn(f64) -> f64| {
            values.iter().map(|&v| of(f64::from(v))).sum::<f64>() / values.len().max(1) as f64
        };
        let mean = over(z, &|z| z);
        let std = over(z, &|z| (z - mean).powi(2)).sqrt();
        Self { mean, std, magnitude: over(z, &f64::abs), weight: over(weights, &f64::abs) }
    }

    /// The probability that the unit is, or by rounding becomes, active: σ(β·(μ + 3σ + noise - τ)) with noise = 0.2·mean|X|·mean|w| and β = 3.
    pub fn risk(self, input_magnitude: f64, threshold: f64) -> f64 {
        let noise = NOISE * input_magnitude * self.weight;
        let upper = self.mean + 3.0 * self.std;
        1.0 / (1.0 + (-SHARPNESS * (upper + noise - threshold)).exp())
    }

    /// What the channel may add to the output: E|z| + σ.
    pub fn utility(self) -> f64 {
        self.magnitude + self.std
    }

    /// Risk times utility. The original's 1e-8 on σ divides nothing and is left out.
    pub fn importance(self, input_magnitude: f64, threshold: f64) -> f64 {
        self.risk(input_magnitude, threshold) * self.utility()
    }
}

/// FastRPRAQ's importance of an output channel of attention: Σ_j E|x_j|·|w_j|.
///
/// # Panics
/// If the two differ in length.
pub fn attention(mean_abs: &[f64], weights: &[f32]) -> f64 {
    assert_eq!(mean_abs.len(), weights.len());
    mean_abs.iter().zip(weights).map(|(x, w)| x * f64::from(w.abs())).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn inputs_by_hand() {
        // Two outputs over two rows: z = (1, -2) and (0, 3); SiLU(1) = .7310586, SiLU(-2) = -.2384058, SiLU(3) = 2.8577224.
        let (first, second) =
            (magnitude(&[1.0, -2.0], Some(Function::Silu)), magnitude(&[0.0, 3.0], Some(Function::Silu)));
        close(first, 0.969_464_42 / 2.0);
        close(second, 2.857_722_4 / 2.0);
        close(magnitude(&[1.0, -2.0], None), 1.5);
        close(magnitude(&[1.0, -2.0], Some(Function::Unknown)), 1.5);
        // Rows (1, 0) and (-2, 1) with weights (1, 0) and (.5, 4): z = (1, -2) with SiLU, and (.5, 3) + .5 without.
        let after = |row: usize| (row == 0).then_some(Function::Silu);
        let x = vec![vec![1.0, 0.0, -2.0, 1.0]];
        let found = inputs(&[1.0, 0.0, 0.5, 4.0], 2, &x, Some(&[0.0, 0.5]), after);
        let (first, second) = (0.969_464_42 / 2.0, 4.5 / 2.0);
        close(found[0], first + 0.5 * second);
        close(found[1], 4.0 * second);
        assert_eq!(mean_abs(&x[0], 2), [1.5, 0.5]);
        let found = normalised(&[1.0, 3.0, 2.0]).unwrap();
        close(found[0], 0.1);
        close(found[1], 10.0);
        close(found[2], 5.05);
    }

    #[test]
    fn what_says_nothing_is_not_spread() {
        assert_eq!(normalised(&[2.0, 2.0]), None);
        assert_eq!(normalised(&[0.0, 9e-11]), None);
        assert_eq!(normalised(&[0.0, f64::NAN]), None);
        assert_eq!(normalised(&[1.0, f64::INFINITY]), None);
        assert_eq!(normalised(&[]), None);
    }

    #[test]
    fn outputs_by_hand() {
        let output = Output::of(&[1.0, -3.0], &[0.5, -1.5]);
        assert_eq!(output, Output { mean: -1.0, std: 2.0, magnitude: 2.0, weight: 1.0 });
        // upper = 5, noise = .2·2·1: σ(3·(5.4 + 3)) is 1 up to 1e-11.
        close(output.importance(2.0, THRESHOLD), 4.0);
        // Dead: z = -6 always: σ(3·(-6 + .4 + 3)) = σ(-7.8) = 4.0956e-4, times E|z| = 6.
        let dead = Output::of(&[-6.0, -6.0], &[0.5, -1.5]);
        close(dead.risk(2.0, THRESHOLD), 4.095_671_6e-4);
        close(dead.importance(2.0, THRESHOLD), 6.0 * 4.095_671_6e-4);
        assert_eq!(attention(&[2.0, 0.5], &[-1.0, 4.0]), 4.0);
    }

    #[test]
    fn weights_of_outputs_have_the_mean_one() {
        assert_eq!(relative(&[1.0, 2.0, 3.0]), [0.5, 1.0, 1.5]);
        assert_eq!(relative(&[0.0, 0.0]), [1.0, 1.0]);
        assert_eq!(relative(&[f64::NAN, 1.0]), [1.0, 1.0]);
        // e^0 : e^1 at temperature 2.
        let found = softmax(&[1.0, 3.0], 2.0);
        close(f64::from(found[0]), 2.0 / (1.0 + 1f64.exp()));
        close(f64::from(found[0] + found[1]), 2.0);
        assert_eq!(softmax(&[1e6, 1e6], 2.0), [1.0, 1.0], "no overflow");
    }

    proptest! {
        #[test]
        fn importances_follow_their_channels_and_ignore_the_unit(
            values in prop::collection::vec(0.0f64..100.0, 2..40), shift in 0usize..40, factor in 0.01f64..100.0,
        ) {
            prop_assume!(normalised(&values).is_some());
            let base = normalised(&values).unwrap();
            let mut turned = values.clone();
            turned.rotate_left(shift % values.len());
            let mut expected = base.clone();
            expected.rotate_left(shift % values.len());
            prop_assert_eq!(normalised(&turned).unwrap(), expected);
            let scaled: Vec<f64> = values.iter().map(|v| v * factor).collect();
            if let Some(scaled) = normalised(&scaled) {
                prop_assert!(scaled.iter().zip(&base).all(|(a, b)| (a - b).abs() < 1e-6));
            }
            prop_assert!(base.iter().all(|v| (0.1..=10.0 + 1e-9).contains(v)));
        }

        #[test]
        fn risk_is_a_probability_that_grows_with_the_mean(mean in -20.0f64..20.0, std in 0.0f64..5.0, more in 0.0f64..5.0) {
            let output = Output { mean, std, magnitude: mean.abs(), weight: 0.1 };
            let risk = output.risk(1.0, THRESHOLD);
            prop_assert!((0.0..=1.0).contains(&risk));
            let livelier = Output { mean: mean + more, ..output };
            prop_assert!(livelier.risk(1.0, THRESHOLD) >= risk);
        }
    }
}
