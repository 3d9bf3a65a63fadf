//! Descriptive numbers of plain vectors: rank correlation, percentiles, histograms. Sums are f64, in the order of the values.

use super::record::{Histogram, Magnitude, Moments, Spread};
use crate::math::stats;

/// Spearman's rank correlation; none if the lengths differ, there are fewer than two values, or one side is constant.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let defined = a.len() == b.len() && a.len() >= 2;
    defined.then(|| stats::spearman(a, b)).filter(|rho| rho.is_finite())
}

/// The percentile `p` (0..=100) of sorted values, interpolated linearly; 0 if there are none.
pub fn percentile(sorted: &[f32], p: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = p / 100.0 * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    let (low, high) = (f64::from(sorted[low]), f64::from(sorted[high.min(last)]));
    (low + (high - low) * at.fract()) as f32
}

/// The mean; 0 if there are no values.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0u64), |(sum, count), v| (sum + v, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Mean, percentiles and maximum.
pub fn spread(mut values: Vec<f32>) -> Spread {
    values.sort_by(f32::total_cmp);
    Spread {
        mean: mean(values.iter().map(|&v| f64::from(v))) as f32,
        p05: percentile(&values, 5.0),
        p50: percentile(&values, 50.0),
        p95: percentile(&values, 95.0),
        max: values.last().copied().unwrap_or(0.0),
    }
}

/// Mean, deviation, maximum and upper percentiles of magnitudes.
pub fn magnitude(mut values: Vec<f32>) -> Magnitude {
    for value in &mut values {
        *value = value.abs();
    }
    values.sort_by(f32::total_cmp);
    let moments = moments(&values);
    Magnitude {
        mean: moments.mean,
        std: moments.std,
        max: moments.max,
        p90: percentile(&values, 90.0),
        p99: percentile(&values, 99.0),
    }
}

/// Mean, standard deviation (n), smallest and largest; zeros if there are no values.
pub fn moments(values: &[f32]) -> Moments {
    if values.is_empty() {
        return Moments::default();
    }
    let mean = mean(values.iter().map(|&v| f64::from(v)));
    let variance = self::mean(values.iter().map(|&v| (f64::from(v) - mean).powi(2)));
    Moments {
        mean: mean as f32,
        std: variance.sqrt() as f32,
        min: values.iter().copied().fold(f32::INFINITY, f32::min),
        max: values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
    }
}

/// Counts values in `bins` bins of equal width from `low` to `high`.
pub fn histogram(values: impl IntoIterator<Item = f32>, low: f32, high: f32, bins: usize) -> Histogram {
    let mut histogram = Histogram { low, high, counts: vec![0; bins], below: 0, above: 0 };
    let width = f64::from(high - low) / bins.max(1) as f64;
    for value in values {
        if value < low {
            histogram.below += 1;
        } else if value > high {
            histogram.above += 1;
        } else {
            let bin = if width > 0.0 { (f64::from(value - low) / width) as usize } else { 0 };
            histogram.counts[bin.min(bins - 1)] += 1;
        }
    }
    histogram
}

/// Adds the counts of `more`, which has the same bins.
///
/// # Panics
/// If it has other bins.
pub fn add_histogram(sum: &mut Option<Histogram>, more: &Histogram) {
    let Some(sum) = sum else {
        *sum = Some(more.clone());
        return;
    };
    assert_eq!((sum.low, sum.high, sum.counts.len()), (more.low, more.high, more.counts.len()));
    sum.counts.iter_mut().zip(&more.counts).for_each(|(a, b)| *a += b);
    sum.below += more.below;
    sum.above += more.above;
}

/// Five significant digits: enough for a curve, and short in JSON.
pub fn short(value: f64) -> f32 {
    format!("{value:.4e}").parse().unwrap_or(value as f32)
}

/// `count` indices of `0..len`, evenly spread, the first and the last among them; all if there are not more.
pub fn spread_indices(len: usize, count: usize) -> Vec<usize> {
    if len <= count {
        return (0..len).collect();
    }
    (0..count).map(|i| i * (len - 1) / (count - 1).max(1)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spearman_by_hand() {
        // Ranks 1 3 2 6 4 5: differences 0 1 1 2 1 1, squared they add up to 8.
        let rho = spearman(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1.0, 3.0, 2.0, 6.0, 3.5, 5.0]);
        let naive = 1.0 - 6.0 * 8.0 / (6.0 * 35.0);
        assert!((rho.unwrap() - naive).abs() < 1e-12, "{rho:?}");
        assert!((spearman(&[1.0, 2.0, 3.0], &[9.0, 5.0, -1.0]).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
    }

    #[test]
    fn percentiles_interpolate() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(percentile(&sorted, 0.0), 1.0);
        assert_eq!(percentile(&sorted, 50.0), 3.0);
        assert_eq!(percentile(&sorted, 100.0), 8.0);
        assert_eq!(percentile(&[], 50.0), 0.0);
    }

    #[test]
    fn bins_hold_their_lower_end_and_the_last_one_both() {
        let found = histogram([-1.5, -1.0, -0.5, 0.0, 0.999, 1.0, 1.001], -1.0, 1.0, 4);
        assert_eq!((found.counts, found.below, found.above), (vec![1, 1, 1, 2], 1, 1));
        let flat = histogram([2.0, 2.0], 2.0, 2.0, 3);
        assert_eq!(flat.counts, [2, 0, 0]);
    }

    #[test]
    fn short_numbers_are_close_and_short() {
        assert_eq!(short(0.123_456_789), 0.123_46);
        assert_eq!(short(-98_765_432.0).to_string(), "-98765000");
        assert_eq!((short(0.0), short(1.0)), (0.0, 1.0));
        assert!(short(f64::NAN).is_nan());
    }

    #[test]
    fn indices_hold_both_ends() {
        assert_eq!(spread_indices(5, 3), [0, 2, 4]);
        assert_eq!(spread_indices(3, 8), [0, 1, 2]);
        assert_eq!(spread_indices(9, 1), [0]);
    }

    proptest! {
        #[test]
        fn moments_are_the_definitions(values in prop::collection::vec(-50.0f32..50.0, 1..60)) {
            let found = moments(&values);
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let square = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / n;
            prop_assert!((f64::from(found.mean) - mean).abs() < 1e-4);
            prop_assert!((f64::from(found.std) - (square - mean * mean).max(0.0).sqrt()).abs() < 1e-3);
        }

        #[test]
        fn histograms_lose_nothing(values in prop::collection::vec(-3.0f32..3.0, 0..80)) {
            let found = histogram(values.iter().copied(), -1.0, 2.0, 7);
            prop_assert_eq!(found.counts.iter().sum::<u64>() + found.below + found.above, values.len() as u64);
        }
    }
}
