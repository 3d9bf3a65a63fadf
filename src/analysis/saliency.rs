//! How the gradient of a salient SiLU channel is spread over its weights.

use super::describe::{mean, short, spread_indices};
use super::record::SaliencyRow;

/// Points of a gradient curve.
const POINTS: usize = 256;

/// SiLU'(z) = σ(z)·(1 + z·(1 − σ(z))).
pub fn silu_slope(z: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-z).exp());
    sigmoid * (1.0 + z * (1.0 - sigmoid))
}

/// E\[(SiLU'(z)·x_j)²] of one output channel over its weights; `x` holds a row of `weights.len()` inputs for each of `z`.
pub fn saliency(matrix: u32, channel: u32, z: &[f32], x: &[f32], weights: &[f32]) -> SaliencyRow {
    let mut sums = vec![0.0f64; weights.len()];
    for (&z, row) in z.iter().zip(x.chunks_exact(weights.len().max(1))) {
        let slope = silu_slope(f64::from(z));
        row.iter().zip(&mut sums).for_each(|(&x, sum)| *sum += (slope * f64::from(x)).powi(2));
    }
    for sum in &mut sums {
        *sum /= z.len().max(1) as f64;
    }
    sums.sort_by(|a, b| b.total_cmp(a));
    let range = |pick: fn(f32, f32) -> f32| weights.iter().copied().reduce(pick).unwrap_or(0.0);
    SaliencyRow {
        matrix,
        channel,
        saliency: mean(z.iter().map(|&z| f64::from(z).abs())) as f32,
        gradient: spread_indices(sums.len(), POINTS).into_iter().map(|i| short(sums[i])).collect(),
        knee: knee(&sums[..sums.len() / 2]) as u32,
        weight_range: [range(f32::min), range(f32::max)],
    }
}

/// The index of the point of a falling curve that lies farthest below the chord from its first to its last point; 0 if there is none.
pub fn knee(curve: &[f64]) -> usize {
    let (Some(&first), Some(&last)) = (curve.first(), curve.last()) else { return 0 };
    let steps = (curve.len() - 1).max(1) as f64;
    let depth = |i: usize| first + (last - first) * i as f64 / steps - curve[i];
    (0..curve.len()).fold(0, |best, i| if depth(i) > depth(best) { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_the_derivative() {
        let silu = |z: f64| z / (1.0 + (-z).exp());
        for z in [-6.0, -1.3, 0.0, 0.4, 5.0] {
            let numeric = (silu(z + 1e-5) - silu(z - 1e-5)) / 2e-5;
            assert!((silu_slope(z) - numeric).abs() < 1e-9);
        }
    }

    #[test]
    fn knees() {
        assert_eq!(knee(&[10.0, 9.0, 1.0, 0.5, 0.0]), 2);
        assert_eq!(knee(&[4.0, 3.0, 2.0, 1.0]), 0, "a straight line has none");
        assert_eq!(knee(&[]), 0);
        assert_eq!(knee(&[1.0]), 0);
    }

    #[test]
    fn gradients_by_hand() {
        // SiLU'(0) = ½: E[(½ x)²] = (¼·1 + ¼·9) / 2 and (¼·4 + ¼·0) / 2.
        let found = saliency(0, 7, &[0.0, 0.0], &[1.0, 2.0, 3.0, 0.0], &[0.5, -0.25]);
        assert_eq!(found.gradient, [1.25, 0.5]);
        assert_eq!((found.channel, found.saliency, found.weight_range), (7, 0.0, [-0.25, 0.5]));
    }
}
