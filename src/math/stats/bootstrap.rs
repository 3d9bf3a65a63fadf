//! The bootstrap of a mean: how far it would wander if the values were drawn again.
//!
//! Percentile intervals of few values are too narrow (with ten values a 95 % interval covers about 90 %), and values are taken for independent.

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::quantile::{quantile, sorted};

/// A confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// Whether a value lies outside; no value lies outside an interval of NaN.
    pub fn excludes(&self, value: f64) -> bool {
        value < self.low || value > self.high
    }

    /// The interval of a growing function of the quantity.
    #[must_use]
    pub fn map(self, growing: impl Fn(f64) -> f64) -> Self {
        Self { low: growing(self.low), high: growing(self.high) }
    }
}

/// The means of the resamples, in the order of their random streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Resamples(Vec<f64>);

impl Resamples {
    /// The mean of each resample.
    pub fn means(&self) -> &[f64] {
        &self.0
    }

    /// The percentile interval that holds the share `confidence` (0..1) of the resamples; NaN of none.
    pub fn interval(&self, confidence: f64) -> Interval {
        let sorted = sorted(&self.0);
        let tail = (1.0 - confidence.clamp(0.0, 1.0)) / 2.0;
        Interval { low: quantile(&sorted, tail), high: quantile(&sorted, 1.0 - tail) }
    }

    /// Averages resamples of several independent sets of values: the resamples of the mean of their means.
    ///
    /// # Panics
    /// If they differ in number.
    pub fn averaged(parts: &[Self]) -> Self {
        let count = parts.first().map_or(0, |part| part.0.len());
        assert!(parts.iter().all(|part| part.0.len() == count));
        let mean = |i: usize| parts.iter().map(|part| part.0[i]).sum::<f64>() / parts.len() as f64;
        Self((0..count).map(mean).collect())
    }
}

/// Draws `resamples` samples with replacement, each as large as `values`, and takes their means. For a paired comparison, `values` are the differences
/// of the pairs. Resample `i` has a ChaCha8 stream of its own, number `i` of the generator that `seed` and the purpose `stream` name: the
/// result depends neither on threads nor on how many resamples there are. No values give no resamples.
pub fn bootstrap_mean(values: &[f64], resamples: usize, seed: u64, stream: &str) -> Resamples {
    if values.is_empty() {
        return Resamples(Vec::new());
    }
    let name = xxh3_64_with_seed(stream.as_bytes(), seed);
    let one = |index: usize| {
        let mut random = ChaCha8Rng::seed_from_u64(name);
        random.set_stream(index as u64);
        let sum: f64 = (0..values.len()).map(|_| values[below(&mut random, values.len())]).sum();
        sum / values.len() as f64
    };
    Resamples((0..resamples).into_par_iter().map(one).collect())
}

/// A random index below `len`. Written out, so that no version of a library changes what a seed means; the bias is below len / 2⁶⁴.
fn below(random: &mut ChaCha8Rng, len: usize) -> usize {
    ((u128::from(random.next_u64()) * len as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(n: u32) -> Vec<f64> {
        (0..n).map(|i| (f64::from(i) * 0.7).sin() + 0.1).collect()
    }

    #[test]
    fn spreads_as_the_standard_error_says() {
        let values = waves(400);
        let moments: super::super::Moments = values.iter().copied().collect();
        let interval = bootstrap_mean(&values, 20_000, 42, "test").interval(0.95);
        // ±1.96 standard errors of the population, within the noise of 20 000 resamples.
        let width = 1.96 * moments.std() / 20.0;
        assert!((interval.low - (moments.mean() - width)).abs() < 0.03 * width, "{interval:?}");
        assert!((interval.high - (moments.mean() + width)).abs() < 0.03 * width, "{interval:?}");
        assert!(interval.excludes(0.0) == (interval.low > 0.0) && !interval.excludes(moments.mean()));
    }

    #[test]
    fn depends_on_seed_and_stream_and_on_nothing_else() {
        let values = waves(30);
        let run = |seed, stream| bootstrap_mean(&values, 100, seed, stream);
        assert_ne!(run(1, "a"), run(2, "a"));
        assert_ne!(run(1, "a"), run(1, "b"));
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| run(1, "a"));
        let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(|| run(1, "a"));
        assert_eq!(one, three);
        assert_eq!(one.means()[..50], *bootstrap_mean(&values, 50, 1, "a").means());
    }

    #[test]
    fn a_seed_names_its_resamples_for_ever() {
        let means = bootstrap_mean(&[1.0, 10.0, 100.0, 1000.0], 3, 42, "pinned");
        assert_eq!(means.means(), [52.75, 775.0, 502.75]);
    }

    #[test]
    fn edges() {
        assert!(bootstrap_mean(&[], 10, 1, "x").interval(0.95).low.is_nan());
        assert!(!Interval { low: f64::NAN, high: f64::NAN }.excludes(0.0));
        let same = bootstrap_mean(&[2.0], 10, 1, "x").interval(0.9);
        assert_eq!((same.low, same.high), (2.0, 2.0));
        let all = Resamples::averaged(&[bootstrap_mean(&[2.0], 10, 1, "x"), bootstrap_mean(&[4.0], 10, 1, "y")]);
        assert_eq!(all.means(), [3.0; 10]);
        assert_eq!(Interval { low: 0.0, high: 1.0 }.map(f64::exp_m1).high, 1f64.exp_m1());
    }
}
