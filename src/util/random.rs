//! Named random streams: one seed of the user, one name for each use, so that no two uses run in step. The generator is ChaCha8 and the methods
//! are written out, so that no version of a library changes what a seed means.

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

/// The stream `name` of `seed`.
pub(crate) fn stream(name: &str, seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), seed))
}

/// A number below `n`.
pub(crate) fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// 0..n in random order (Fisher-Yates from the front).
pub(crate) fn shuffled(n: usize, name: &str, seed: u64) -> Vec<usize> {
    let mut rng = stream(name, seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n {
        let pick = i + below(&mut rng, n - i);
        order.swap(i, pick);
    }
    order
}

/// A number of the standard normal distribution (Marsaglia's polar method; the second number of each pair is left out).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let mut unit = || (rng.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    loop {
        let (u, v) = (unit(), unit());
        let s = u * u + v * v;
        if s > 0.0 && s < 1.0 {
            return u * (-2.0 * s.ln() / s).sqrt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_the_moments_of_their_distribution() {
        let mut rng = stream("normal numbers", 1);
        let values: Vec<f64> = (0..40_000).map(|_| normal(&mut rng)).collect();
        let mean = |of: fn(f64) -> f64| values.iter().map(|&v| of(v)).sum::<f64>() / values.len() as f64;
        assert!(mean(|v| v).abs() < 0.02 && (mean(|v| v * v) - 1.0).abs() < 0.03);
        let beyond = |sigma: f64| values.iter().filter(|v| v.abs() > sigma).count() as f64 / 40_000.0;
        assert!((beyond(1.0) - 0.3173).abs() < 0.01 && (beyond(2.0) - 0.0455).abs() < 0.004);
        assert_eq!(normal(&mut stream("a", 1)), normal(&mut stream("a", 1)));
        assert_ne!(normal(&mut stream("a", 1)), normal(&mut stream("b", 1)));
    }
}
