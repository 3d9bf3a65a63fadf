//! Which part of a tensor's error the important channels carry.

use super::describe::mean;
use super::importance::important;
use super::record::{Errors, Split, SplitOutput, Test};
use crate::math::dots::product;
use crate::math::stats;

/// Output errors of the rows of one matrix, added up.
#[derive(Debug, Clone, Copy, Default)]
pub struct OutputSums {
    count: u64,
    sq: [f64; 3],
    signed: [f64; 2],
}

impl OutputSums {
    /// Adds X·ΔWᵀ of sample rows `x` and weight errors `delta`, both rows of `important.len()` values.
    pub fn add(&mut self, x: &[f32], delta: &[f32], important: &[bool]) {
        let columns = important.len();
        let masked = |keep: bool| -> Vec<f32> {
            let channels = important.iter().cycle();
            delta.iter().zip(channels).map(|(&d, &i)| if i == keep { d } else { 0.0 }).collect()
        };
        let (of_important, of_other) = (product(x, &masked(true), columns), product(x, &masked(false), columns));
        for (&a, &b) in of_important.iter().zip(&of_other) {
            let (a, b) = (f64::from(a), f64::from(b));
            self.sq = [self.sq[0] + a * a, self.sq[1] + b * b, self.sq[2] + (a + b) * (a + b)];
            self.signed = [self.signed[0] + a, self.signed[1] + b];
        }
        self.count += of_important.len() as u64;
    }

    /// Σ (X·ΔWᵀ)².
    pub fn total_sq(&self) -> f64 {
        self.sq[2]
    }

    /// The means; nothing if nothing was added.
    pub fn means(&self) -> Option<SplitOutput> {
        let mean = |sum: f64| (sum / self.count as f64) as f32;
        (self.count > 0).then(|| SplitOutput {
            mse_important: mean(self.sq[0]),
            mse_other: mean(self.sq[1]),
            mse_total: mean(self.sq[2]),
            mean_important: mean(self.signed[0]),
            mean_other: mean(self.signed[1]),
            mean_total: mean(self.signed[0] + self.signed[1]),
            ratio: (self.sq[1] > 0.0).then(|| (self.sq[0] / self.sq[1]) as f32),
        })
    }
}

/// m_j = E\[x_j²]·mean_n ΔW_nj².
pub fn channel_mse(mean_sq: &[f64], delta: &[f32]) -> Vec<f64> {
    let rows = delta.len() / mean_sq.len().max(1);
    let mut sums = vec![0.0f64; mean_sq.len()];
    for row in delta.chunks_exact(mean_sq.len().max(1)) {
        row.iter().zip(&mut sums).for_each(|(&d, sum)| *sum += f64::from(d) * f64::from(d));
    }
    sums.iter().zip(mean_sq).map(|(sum, x)| x * sum / rows.max(1) as f64).collect()
}

/// Splits the weight errors `delta` (rows of `mean_sq.len()` channels) by importance.
pub fn split(mean_sq: &[f64], delta: &[f32], output: Option<SplitOutput>) -> Split {
    let mask = important(mean_sq);
    let (mut of_important, mut of_other) = (Vec::new(), Vec::new());
    for row in delta.chunks_exact(mean_sq.len().max(1)) {
        for (&d, &important) in row.iter().zip(&mask) {
            if important { &mut of_important } else { &mut of_other }.push(f64::from(d));
        }
    }
    let errors = channel_mse(mean_sq, delta);
    let part = |keep: bool| -> Vec<f64> {
        errors.iter().zip(&mask).filter(|&(_, &important)| important == keep).map(|(&m, _)| m).collect()
    };
    let (m_important, m_other) = (part(true), part(false));
    let magnitudes = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<f64>>();
    let other_mean = mean(m_other.iter().copied());
    Split {
        important_channels: mask.iter().filter(|&&important| important).count() as u32,
        output,
        important: brief(&of_important),
        other: brief(&of_other),
        signed_t: t_test(&of_important, &of_other),
        abs_ks: ks_test(&magnitudes(&of_important), &magnitudes(&of_other)),
        channel_t: t_test(&m_important, &m_other),
        channel_ks: ks_test(&m_important, &m_other),
        channel_ratio: (other_mean > 0.0).then(|| (mean(m_important.iter().copied()) / other_mean) as f32),
    }
}

/// Signed errors in brief; zeros if there are none.
fn brief(values: &[f64]) -> Errors {
    if values.is_empty() {
        return Errors::default();
    }
    let average = mean(values.iter().copied());
    Errors {
        mean: average as f32,
        std: mean(values.iter().map(|v| (v - average).powi(2))).sqrt() as f32,
        mean_abs: mean(values.iter().map(|v| v.abs())) as f32,
        min: values.iter().copied().fold(f64::INFINITY, f64::min) as f32,
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max) as f32,
    }
}

fn t_test(a: &[f64], b: &[f64]) -> Test {
    let moments = |values: &[f64]| values.iter().copied().collect::<stats::Moments>();
    defined(stats::t_test(&moments(a), &moments(b)))
}

fn ks_test(a: &[f64], b: &[f64]) -> Test {
    defined(stats::ks_test(a, b))
}

/// Leaves out what is not a number.
fn defined(result: stats::TestResult) -> Test {
    let number = |value: f64| value.is_finite().then_some(value as f32);
    Test { statistic: number(result.statistic), p: number(result.p) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 12) as f32 / 5e5 - 1.0;
        (0..len).map(value).collect()
    }

    #[test]
    fn output_errors_are_the_definition() {
        let (columns, rows, outputs) = (6, 5, 3);
        let (x, delta) = (noise(rows * columns, 7), noise(outputs * columns, 99));
        let mask = [true, false, true, false, false, true];
        let mut sums = OutputSums::default();
        sums.add(&x[..2 * columns], &delta, &mask);
        sums.add(&x[2 * columns..], &delta, &mask);
        let found = sums.means().unwrap();
        let (mut sq, mut signed) = ([0.0f64; 3], [0.0f64; 3]);
        for x in x.chunks(columns) {
            for d in delta.chunks(columns) {
                let part = |keep: bool| -> f64 {
                    (0..columns).filter(|&j| mask[j] == keep).map(|j| f64::from(x[j]) * f64::from(d[j])).sum()
                };
                for (i, value) in [part(true), part(false), part(true) + part(false)].into_iter().enumerate() {
                    sq[i] += value * value / (rows * outputs) as f64;
                    signed[i] += value / (rows * outputs) as f64;
                }
            }
        }
        let close = |a: f32, b: f64| assert!((f64::from(a) - b).abs() < 1e-5, "{a} is not {b}");
        close(found.mse_important, sq[0]);
        close(found.mse_other, sq[1]);
        close(found.mse_total, sq[2]);
        close(found.mean_important, signed[0]);
        close(found.mean_other, signed[1]);
        close(found.mean_total, signed[2]);
        close(found.ratio.unwrap(), sq[0] / sq[1]);
        assert!((sums.total_sq() / (rows * outputs) as f64 - sq[2]).abs() < 1e-5);
    }

    #[test]
    fn by_hand() {
        // Channels 1 and 3 are important; their weights are off by 1 and 3, the others' by 0 and -1.
        let found = split(&[1.0, 9.0, 2.0, 4.0], &[0.0, 1.0, -1.0, 3.0, 0.0, 1.0, -1.0, 3.0], None);
        assert_eq!(found.important_channels, 2);
        assert_eq!(found.important, Errors { mean: 2.0, std: 1.0, mean_abs: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(found.other, Errors { mean: -0.5, std: 0.5, mean_abs: 0.5, min: -1.0, max: 0.0 });
        // m = 0, 9, 2, 36.
        assert_eq!(found.channel_ratio, Some(22.5));
        assert_eq!(found.channel_ks.statistic, Some(1.0));
        // Means 2 and -½, pooled variance (4 + 1) / 6, 1/4 + 1/4.
        let t = 2.5 / (5.0 / 6.0 * 0.5f32).sqrt();
        assert!((found.signed_t.statistic.unwrap() - t).abs() < 1e-5);
        // Magnitudes 1 3 1 3 against 0 1 0 1: half of the latter lie below all of the former.
        assert_eq!(found.abs_ks.statistic, Some(0.5));
    }

    #[test]
    fn nothing_to_compare_is_absent() {
        let none = split(&[1.0, 2.0], &[], None);
        assert_eq!((none.signed_t, none.abs_ks, none.important), (Test::default(), Test::default(), Errors::default()));
        let exact = split(&[1.0, 2.0], &[0.0; 8], None);
        assert_eq!((exact.channel_ratio, exact.channel_t), (None, Test::default()));
        assert_eq!(OutputSums::default().means(), None);
    }
}
