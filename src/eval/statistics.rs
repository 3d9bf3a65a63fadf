//! Means, their standard errors and percentiles, with llama-perplexity's definitions. Tokens count as independent, as there.

use serde::Serialize;

/// A value and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Default)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its standard error; 0 where there are too few numbers to tell.
    pub error: f64,
}

impl Estimate {
    /// Both times `factor`.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { value: self.value * factor, error: self.error * factor }
    }

    /// e^value, and the error that follows to first order.
    #[must_use]
    pub fn exp(self) -> Self {
        let value = self.value.exp();
        Self { value, error: value * self.error }
    }

    /// The plain mean of several estimates that do not depend on each other; `None` of none.
    pub fn mean(all: &[Estimate]) -> Option<Self> {
        let count = all.len() as f64;
        let value = all.iter().map(|e| e.value).sum::<f64>() / count;
        let error = all.iter().map(|e| e.error * e.error).sum::<f64>().sqrt() / count;
        (!all.is_empty()).then_some(Self { value, error })
    }
}

/// Numbers up to here have no standard error worth the name.
const TOO_FEW: u64 = 10;

/// The sum of some numbers and of their squares.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moments {
    pub(super) sum: f64,
    pub(super) sum_sq: f64,
    pub(super) count: u64,
}

impl Moments {
    pub(super) fn add(&mut self, value: f64) {
        self.sum += value;
        self.sum_sq += value * value;
        self.count += 1;
    }

    pub(super) fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The mean of the numbers.
    pub(super) fn estimate(&self) -> Estimate {
        let (value, count) = (self.mean(), self.count as f64);
        let variance = self.sum_sq / count - value * value;
        let error = if self.count > TOO_FEW { (variance.max(0.0) / (count - 1.0)).sqrt() } else { 0.0 };
        Estimate { value, error }
    }
}

/// The covariance of the means of two sets of numbers, given the sum of their products.
pub(super) fn covariance(a: &Moments, b: &Moments, products: f64) -> f64 {
    let count = a.count as f64;
    if a.count < TOO_FEW { 0.0 } else { (products / count - a.mean() * b.mean()) / (count - 1.0) }
}

/// One point of a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentile {
    /// How many percent of the numbers lie below; 0 is the smallest, 50 the median, 100 the largest.
    pub percent: f64,
    /// The number there.
    pub value: f64,
}

/// The points that are reported.
const PERCENTS: [f32; 13] = [100.0, 99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1, 0.0];

/// The distribution of `values` (sorted here), interpolated between neighbours.
pub(super) fn percentiles(values: &mut [f32]) -> Vec<Percentile> {
    values.sort_unstable_by(f32::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return Vec::new() };
    let at = |percent: f32| {
        // The place in f32, as llama-perplexity counts it.
        let place = percent / 100.0 * last as f32;
        let below = (place as usize).min(last);
        let part = place - below as f32;
        f64::from((1.0 - part) * values[below] + part * values[(below + 1).min(last)])
    };
    // 99.9 in f32 and back is not 99.9.
    let point = |&percent: &f32| Percentile { percent: (f64::from(percent) * 10.0).round() / 10.0, value: at(percent) };
    PERCENTS.iter().map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_that_of_a_mean() {
        let mut moments = Moments::default();
        (0..12).for_each(|i| moments.add(f64::from(i % 2) * 2.0 + 1.0));
        // Mean 2, variance 1, 12 numbers.
        let estimate = moments.estimate();
        assert!((estimate.value - 2.0).abs() < 1e-12 && (estimate.error - (1.0f64 / 11.0).sqrt()).abs() < 1e-12);
        assert!((covariance(&moments, &moments, moments.sum_sq) - 1.0 / 11.0).abs() < 1e-12);
        let few = Moments { sum: 3.0, sum_sq: 5.0, count: 2 };
        assert_eq!((few.estimate().error, covariance(&few, &few, 5.0)), (0.0, 0.0));
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let mut values = [4.0, 1.0, 3.0, 2.0, 5.0];
        let points = percentiles(&mut values);
        let value = |percent: f64| points.iter().find(|p| p.percent == percent).unwrap().value;
        assert_eq!((value(100.0), value(50.0), value(0.0), value(75.0)), (5.0, 3.0, 1.0, 4.0));
        assert!((value(90.0) - 4.6).abs() < 1e-6 && (value(99.9) - 4.996).abs() < 1e-6);
        assert!(percentiles(&mut []).is_empty());
    }

    #[test]
    fn the_mean_of_estimates_adds_their_variances() {
        let all = [Estimate { value: 1.0, error: 3.0 }, Estimate { value: 3.0, error: 4.0 }];
        assert_eq!(Estimate::mean(&all), Some(Estimate { value: 2.0, error: 2.5 }));
        assert_eq!(Estimate::mean(&[]), None);
    }
}
