//! Channel scales: `x' = x·a`, `w' = w/a`, so that activations and weights share the burden of the outliers.
//!
//! A scale is exact in real numbers; what remains is the rounding of the tensors that it is folded into: the F32 gain of a norm (6e-8 relative),
//! or rows of a weight that is requantised anyway. Scales are therefore not rounded to powers of two.

use std::ops::RangeInclusive;

/// The range of a scale; the geometric mean is 1.
pub const RANGE: RangeInclusive<f64> = 0.01..=100.0;

/// The closed form a = (‖w‖² / `E[x²]`)^¼, which minimises (Σ `E[x²]`·a²)·(Σ ‖w‖²/a²) by the Cauchy-Schwarz inequality: the first factor sets the
/// rounding error of rotated activations, the second that of rotated weights. A channel in which either is zero keeps the scale 1.
///
/// # Panics
/// If the two differ in length.
pub fn closed_form(mean_sq: &[f64], weight_sq: &[f64]) -> Vec<f32> {
    assert_eq!(mean_sq.len(), weight_sq.len());
    let raw: Vec<f64> = mean_sq
        .iter()
        .zip(weight_sq)
        .map(|(&x, &w)| if alive(x) && alive(w) { (w / x).powf(0.25) } else { f64::NAN })
        .collect();
    normalised(&raw)
}

/// The scale a = salience^-α of AWQ; α = 0 changes nothing. A channel without salience keeps the scale 1.
pub fn awq(salience: &[f64], alpha: f64) -> Vec<f32> {
    let raw: Vec<f64> = salience.iter().map(|&s| if alive(s) { s.powf(-alpha) } else { f64::NAN }).collect();
    normalised(&raw)
}

/// The means of `values` over groups of channels that must share a scale: `group[j]` is the group of channel `j`.
pub fn pooled(values: &[f64], group: &[usize], groups: usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0u32); groups];
    for (&value, &group) in values.iter().zip(group) {
        sums[group].0 += value;
        sums[group].1 += 1;
    }
    sums.into_iter().map(|(sum, count)| sum / f64::from(count.max(1))).collect()
}

/// Whether a number can be part of a ratio.
fn alive(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

/// Divides by the geometric mean of the numbers that are there (NaN stands for "none"), and clips.
fn normalised(raw: &[f64]) -> Vec<f32> {
    let (mut logs, mut count) = (0.0, 0u32);
    for value in raw.iter().filter(|value| alive(**value)) {
        logs += value.ln();
        count += 1;
    }
    let mean = (logs / f64::from(count.max(1))).exp();
    let one = |&value: &f64| if alive(value) { (value / mean).clamp(*RANGE.start(), *RANGE.end()) as f32 } else { 1.0 };
    raw.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_form_is_the_fourth_root_around_one() {
        let scale = closed_form(&[1.0, 16.0, 0.0], &[16.0, 1.0, 5.0]);
        assert!((scale[0] - 2.0).abs() < 1e-6 && (scale[1] - 0.5).abs() < 1e-6, "{scale:?}");
        assert_eq!(scale[2], 1.0, "a dead channel");
    }

    #[test]
    fn clips_and_survives_the_impossible() {
        let scale = closed_form(&[1e30, 1.0, 1.0, f64::NAN], &[1.0, 1.0, 1.0, 1.0]);
        assert!((scale[0] - 0.01).abs() < 1e-7 && scale[3] == 1.0, "{scale:?}");
        assert_eq!(closed_form(&[0.0; 3], &[1.0; 3]), [1.0; 3]);
        assert_eq!(closed_form(&[], &[]), [0.0f32; 0]);
    }

    #[test]
    fn awq_with_alpha_zero_changes_nothing_and_with_a_quarter_is_the_activations_part() {
        let salience = [4.0, 1.0, 0.25];
        assert_eq!(awq(&salience, 0.0), [1.0; 3]);
        assert_eq!(awq(&salience, 0.25), closed_form(&salience, &[1.0; 3]));
    }

    #[test]
    fn closed_form_beats_its_neighbours() {
        let (x, w) = ([3.0, 0.2, 7.0, 1.0], [0.5, 2.0, 0.01, 1.0]);
        let cost = |a: &[f32]| {
            let sum =
                |values: &[f64], power| values.iter().zip(a).map(|(v, &a)| v * f64::from(a).powi(power)).sum::<f64>();
            sum(&x, 2) * sum(&w, -2)
        };
        let best = closed_form(&x, &w);
        for (channel, factor) in [(0, 1.1), (0, 0.9), (2, 1.2), (3, 0.8)] {
            let mut other = best.clone();
            other[channel] *= factor;
            assert!(cost(&other) > cost(&best));
        }
    }

    #[test]
    fn pools_means() {
        assert_eq!(pooled(&[1.0, 3.0, 10.0], &[0, 0, 1], 2), [2.0, 10.0]);
    }
}
