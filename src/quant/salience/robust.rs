//! Robust-PRAQ's noise: importances that hold for inputs near those of the calibration text.

use crate::math::stats::Moments;
use crate::util::random::{normal, stream};

/// Draws of noise that an importance is averaged over.
pub const DRAWS: usize = 3;
/// The standard deviation of the noise, as a part of that of the inputs.
pub const STRENGTH: f64 = 0.01;
/// The same while scales are searched, where one draw is taken and the outputs aimed at stay those of the inputs without noise.
pub const SEARCH_STRENGTH: f64 = STRENGTH / 2.0;
/// Inputs whose standard deviation is below this get no noise.
const CONSTANT: f64 = 1e-8;
/// The seed of all draws.
const SEED: u64 = 42;

/// Sample rows with normal noise of `strength` times their standard deviation (over all values, n - 1), from the random stream `name`.
pub fn noisy(rows: &[f32], strength: f64, name: &str) -> Vec<f32> {
    let std = rows.iter().map(|&x| f64::from(x)).collect::<Moments>().sample_std();
    if std.is_nan() || std < CONSTANT {
        return rows.to_vec();
    }
    let mut rng = stream(name, SEED);
    rows.iter().map(|&x| (f64::from(x) + strength * std * normal(&mut rng)) as f32).collect()
}

/// The inputs that an importance is averaged over: one set of rows for each draw.
pub fn draws(rows: &[f32], name: &str) -> Vec<Vec<f32>> {
    (0..DRAWS).map(|draw| noisy(rows, STRENGTH, &format!("robust-praq {name} draw {draw}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_its_strength_and_its_stream() {
        let rows: Vec<f32> = (0..20_000).map(|i| if i % 2 == 0 { 3.0 } else { -3.0 }).collect();
        let found = noisy(&rows, 0.01, "a");
        let noise: Moments = found.iter().zip(&rows).map(|(a, b)| f64::from(a - b)).collect();
        assert!((noise.std() - 0.03).abs() < 0.001 && noise.mean().abs() < 0.001, "{noise:?}");
        assert_eq!(found, noisy(&rows, 0.01, "a"));
        assert_ne!(found, noisy(&rows, 0.01, "b"));
        let draws = draws(&rows, "t");
        assert!(draws.len() == 3 && draws[0] != draws[1] && draws[1] != draws[2]);
    }

    #[test]
    fn constant_inputs_stay_as_they_are() {
        assert_eq!(noisy(&[2.0; 8], 0.01, "a"), [2.0; 8]);
        assert_eq!(noisy(&[], 0.01, "a"), [0.0f32; 0]);
        assert_eq!(noisy(&[1.0], 0.01, "a"), [1.0]);
    }
}
