//! Quantiles with linear interpolation between order statistics: position p·(n - 1), numpy's default and what llama-perplexity prints.

/// The values in ascending order (NaN last).
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The quantile `p` (0..=1, clamped) of values in ascending order: with h = p·(n - 1), the value at ⌊h⌋ moved towards the next by the fraction
/// of h. NaN of no values.
pub fn quantile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = p.clamp(0.0, 1.0) * last as f64;
    let below = (position as usize).min(last);
    let (low, high, fraction) = (sorted[below], sorted[(below + 1).min(last)], position - below as f64);
    if fraction == 0.0 { low } else { (1.0 - fraction) * low + fraction * high }
}

/// The median of values in ascending order: the middle one, or the mean of the two in the middle. NaN of no values.
pub fn median(sorted: &[f64]) -> f64 {
    quantile(sorted, 0.5)
}

/// [`quantile`] as llama-perplexity computes it, every step in f32, for numbers that are to agree with it to the last printed digit.
/// NaN of no values.
pub fn percentile_f32(sorted: &[f32], fraction: f32) -> f32 {
    let (Some(&first), Some(&last)) = (sorted.first(), sorted.last()) else { return f32::NAN };
    if fraction <= 0.0 {
        return first;
    }
    if fraction >= 1.0 {
        return last;
    }
    let position = fraction * (sorted.len() - 1) as f32;
    let below = (position as usize).min(sorted.len() - 1);
    let part = position - below as f32;
    (1.0 - part) * sorted[below] + part * sorted[(below + 1).min(sorted.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_numbers() {
        // numpy: np.quantile([0.5, -1.25, 3, 2, 2, -0.75, 8.5, 0.125], [0, .05, .1, .25, .5, .9, .999, 1])
        let values = sorted(&[0.5, -1.25, 3.0, 2.0, 2.0, -0.75, 8.5, 0.125]);
        let expected = [-1.25, -1.075, -0.9, -0.093_75, 1.25, 4.65, 8.4615, 8.5];
        for ((p, want), index) in [0.0, 0.05, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0].into_iter().zip(expected).zip(0..) {
            assert!((quantile(&values, p) - want).abs() < 1e-12, "{index}");
            let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            assert!((f64::from(percentile_f32(&narrow, p as f32)) - want).abs() < 1e-5, "{index}");
        }
        assert_eq!(median(&values), 1.25);
    }

    #[test]
    fn edges() {
        assert!(quantile(&[], 0.5).is_nan() && percentile_f32(&[], 0.5).is_nan());
        assert_eq!((quantile(&[7.0], 0.3), quantile(&[1.0, 2.0], -1.0), quantile(&[1.0, 2.0], 2.0)), (7.0, 1.0, 2.0));
        assert_eq!(quantile(&[0.0, f64::INFINITY], 0.0), 0.0, "what is not mixed in cannot spoil it");
        assert_eq!(percentile_f32(&[1.0, 2.0], 1.5), 2.0);
    }
}
