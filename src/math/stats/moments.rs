//! Running means, variances and covariances by Welford's update, which loses no digits to large means and merges exactly as if the parts had been one.

/// Count, mean, variance, smallest and largest of a stream of values, in the unit of the values (variances in its square).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    count: u64,
    mean: f64,
    /// Σ (x - mean)².
    m2: f64,
    min: f64,
    max: f64,
}

impl Default for Moments {
    fn default() -> Self {
        Self { count: 0, mean: 0.0, m2: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Moments {
    /// Adds one value.
    pub fn push(&mut self, value: f64) {
        self.count += 1;
        let delta = value - self.mean;
        self.mean += delta / self.count as f64;
        self.m2 += delta * (value - self.mean);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Adds what another saw (Chan's formula).
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let (own, theirs) = (self.count as f64, other.count as f64);
        let (total, delta) = (own + theirs, other.mean - self.mean);
        self.mean += delta * theirs / total;
        self.m2 += other.m2 + delta * delta * own * theirs / total;
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean; NaN of no values.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { f64::NAN } else { self.mean }
    }

    /// The smallest value; infinite of no values.
    pub fn min(&self) -> f64 {
        self.min
    }

    /// The largest value; minus infinite of no values.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// The variance of the population: Σ (x - mean)² / n, numpy's default; NaN of no values.
    pub fn variance(&self) -> f64 {
        if self.count == 0 { f64::NAN } else { self.m2 / self.count as f64 }
    }

    /// The unbiased variance of a sample: Σ (x - mean)² / (n - 1); NaN of fewer than two values.
    pub fn sample_variance(&self) -> f64 {
        if self.count < 2 { f64::NAN } else { self.m2 / (self.count - 1) as f64 }
    }

    /// The standard deviation of the population.
    pub fn std(&self) -> f64 {
        self.variance().sqrt()
    }

    /// The standard deviation of a sample.
    pub fn sample_std(&self) -> f64 {
        self.sample_variance().sqrt()
    }

    /// The standard error of the mean of independent values: √(sample variance / n); NaN of fewer than two values.
    pub fn standard_error(&self) -> f64 {
        (self.sample_variance() / self.count as f64).sqrt()
    }
}

impl FromIterator<f64> for Moments {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        let mut moments = Self::default();
        values.into_iter().for_each(|value| moments.push(value));
        moments
    }
}

/// Moments of pairs: means, variances and the covariance of x and y.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CoMoments {
    x: Moments,
    y: Moments,
    /// Σ (x - mean x)(y - mean y).
    c2: f64,
}

impl CoMoments {
    /// Adds one pair.
    pub fn push(&mut self, x: f64, y: f64) {
        let before = x - self.x.mean;
        self.x.push(x);
        self.y.push(y);
        self.c2 += before * (y - self.y.mean);
    }

    /// Adds what another saw.
    pub fn merge(&mut self, other: &Self) {
        let (own, theirs) = (self.x.count as f64, other.x.count as f64);
        if other.x.count > 0 {
            self.c2 +=
                other.c2 + (other.x.mean - self.x.mean) * (other.y.mean - self.y.mean) * own * theirs / (own + theirs);
        }
        self.x.merge(&other.x);
        self.y.merge(&other.y);
    }

    /// The moments of x alone.
    pub fn x(&self) -> &Moments {
        &self.x
    }

    /// The moments of y alone.
    pub fn y(&self) -> &Moments {
        &self.y
    }

    /// The covariance of the population: Σ (x - mean x)(y - mean y) / n; NaN of no pairs.
    pub fn covariance(&self) -> f64 {
        if self.x.count == 0 { f64::NAN } else { self.c2 / self.x.count as f64 }
    }

    /// The covariance of a sample, divided by n - 1; NaN of fewer than two pairs.
    pub fn sample_covariance(&self) -> f64 {
        if self.x.count < 2 { f64::NAN } else { self.c2 / (self.x.count - 1) as f64 }
    }

    /// Pearson's correlation, in -1..=1; NaN where x or y does not vary.
    pub fn correlation(&self) -> f64 {
        let scale = self.x.m2.sqrt() * self.y.m2.sqrt();
        if scale > 0.0 { (self.c2 / scale).clamp(-1.0, 1.0) } else { f64::NAN }
    }
}

impl FromIterator<(f64, f64)> for CoMoments {
    fn from_iter<T: IntoIterator<Item = (f64, f64)>>(pairs: T) -> Self {
        let mut moments = Self::default();
        pairs.into_iter().for_each(|(x, y)| moments.push(x, y));
        moments
    }
}

/// Pearson's correlation of two equally long lists; NaN where one of them does not vary.
///
/// # Panics
/// If they differ in length.
pub fn correlation(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().copied().zip(y.iter().copied()).collect::<CoMoments>().correlation()
}

/// The cosine of the angle between two vectors, x·y / (‖x‖‖y‖), in -1..=1; NaN where one of them is zero or empty.
///
/// # Panics
/// If they differ in length.
pub fn cosine(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    // Divided by the largest magnitude first, so that no square overflows.
    let largest = |values: &[f64]| values.iter().fold(0.0f64, |max, value| max.max(value.abs()));
    let (a, b) = (largest(x), largest(y));
    if !(a > 0.0 && b > 0.0) {
        return f64::NAN;
    }
    let (mut dot, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().map(|x| x / a).zip(y.iter().map(|y| y / b)) {
        dot += x * y;
        xx += x * x;
        yy += y * y;
    }
    (dot / (xx * yy).sqrt()).clamp(-1.0, 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // numpy: X.mean(), X.var(), X.var(ddof=1), X.std(ddof=1) / sqrt(8); np.cov(X, Y, ddof=0/1), np.corrcoef(X, Y).
    const X: [f64; 8] = [0.5, -1.25, 3.0, 2.0, 2.0, -0.75, 8.5, 0.125];
    const Y: [f64; 8] = [1.0, -2.0, 2.5, 4.0, 1.5, 0.0, 6.0, -0.5];

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn worked_numbers() {
        let m: Moments = X.into_iter().collect();
        near(m.mean(), 1.765_625);
        near(m.variance(), 8.337_646_484_375);
        near(m.sample_variance(), 9.528_738_839_285_714);
        near(m.standard_error(), 1.091_371_776_669_487_7);
        assert_eq!((m.min(), m.max(), m.count()), (-1.25, 8.5, 8));
        let c: CoMoments = X.into_iter().zip(Y).collect();
        near(c.covariance(), 6.295_898_437_5);
        near(c.sample_covariance(), 7.195_312_5);
        near(c.correlation(), 0.907_134_889_317_951);
        near(correlation(&X, &Y), 0.907_134_889_317_951);
        near(cosine(&X, &Y), 0.933_193_174_172_705_4);
    }

    #[test]
    fn large_means_cost_no_digits() {
        let m: Moments = [4.0, 7.0, 13.0, 16.0].map(|x| x + 1e9).into_iter().collect();
        assert_eq!(m.sample_variance(), 30.0);
    }

    #[test]
    fn too_few_values_are_nan_not_zero() {
        let none = Moments::default();
        assert!(none.mean().is_nan() && none.variance().is_nan() && none.standard_error().is_nan());
        let one: Moments = [3.0].into_iter().collect();
        assert!(one.mean() == 3.0 && one.variance() == 0.0 && one.sample_variance().is_nan());
        assert!(CoMoments::default().covariance().is_nan());
        assert!(correlation(&[1.0, 1.0], &[1.0, 2.0]).is_nan() && cosine(&[0.0], &[1.0]).is_nan());
        assert_eq!(cosine(&[1e300, 0.0], &[1e-300, 0.0]), 1.0);
    }

    proptest! {
        #[test]
        fn parts_merge_to_the_whole(values in prop::collection::vec((-1e3f64..1e3, -1e3f64..1e3), 0..50), cut in 0usize..50) {
            let (a, b) = values.split_at(cut.min(values.len()));
            let mut merged: CoMoments = a.iter().copied().collect();
            merged.merge(&b.iter().copied().collect());
            let whole: CoMoments = values.iter().copied().collect();
            prop_assert_eq!(merged.x().count(), whole.x().count());
            prop_assert!(values.is_empty() || (merged.x().mean() - whole.x().mean()).abs() < 1e-9);
            prop_assert!(values.is_empty() || (merged.y().variance() - whole.y().variance()).abs() < 1e-6);
            prop_assert!(values.is_empty() || (merged.covariance() - whole.covariance()).abs() < 1e-6);
        }

        #[test]
        fn agrees_with_two_passes(values in prop::collection::vec(-1e3f64..1e3, 2..60)) {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
            let m: Moments = values.iter().copied().collect();
            prop_assert!((m.mean() - mean).abs() < 1e-9 && (m.variance() - variance).abs() < 1e-7);
        }
    }
}
