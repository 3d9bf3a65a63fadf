//! How unevenly a sum is spread, and evenly spaced grids.

/// The share of Σ values that the largest ⌈p·n⌉ of them hold, in 0..=1. Values are taken as they are (pass magnitudes or energies); NaN if there
/// are none, or their sum is not positive.
pub fn top_share(values: &[f64], p: f64) -> f64 {
    let mut descending = values.to_vec();
    descending.sort_unstable_by(|a, b| b.total_cmp(a));
    let total: f64 = descending.iter().sum();
    // The subtraction keeps 0.1·10 from being counted as 11 where the product rounds up.
    let count = ((p.clamp(0.0, 1.0) * values.len() as f64) - 1e-9).ceil().max(0.0) as usize;
    if total > 0.0 { descending[..count].iter().sum::<f64>() / total } else { f64::NAN }
}

/// `count` numbers from `low` to `high`, both included, equally far apart (numpy's `linspace`); `low` alone if there is one.
pub fn linear_space(low: f64, high: f64, count: usize) -> Vec<f64> {
    let last = count.saturating_sub(1);
    let at = |i: usize| if i > 0 && i == last { high } else { low + (high - low) * i as f64 / last.max(1) as f64 };
    (0..count).map(at).collect()
}

/// `count` numbers from `low` to `high`, both included and positive, each the same multiple of the one before (numpy's `geomspace`).
///
/// # Panics
/// Unless both are positive.
pub fn log_space(low: f64, high: f64, count: usize) -> Vec<f64> {
    assert!(low > 0.0 && high > 0.0);
    let mut grid: Vec<f64> = linear_space(low.ln(), high.ln(), count).into_iter().map(f64::exp).collect();
    if let Some(first) = grid.first_mut() {
        *first = low;
    }
    if let [_, .., last] = &mut grid[..] {
        *last = high;
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let values = [1.0, 4.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!([0.1, 0.2, 0.15, 0.5, 1.0, 0.0].map(|p| top_share(&values, p)), [0.4, 0.7, 0.7, 1.0, 1.0, 0.0]);
        assert!(top_share(&[], 0.5).is_nan() && top_share(&[0.0], 0.5).is_nan());
        assert_eq!(top_share(&[1.0; 1000], 0.3), 0.3);
    }

    #[test]
    fn grids() {
        assert_eq!(linear_space(0.0, 1.0, 5), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(linear_space(3.0, 9.0, 1), [3.0]);
        assert!(linear_space(0.0, 1.0, 0).is_empty() && log_space(1.0, 2.0, 0).is_empty());
        let grid = log_space(1e-3, 1e3, 7);
        assert_eq!((grid[0], grid[6]), (1e-3, 1e3));
        assert!(grid.iter().zip([1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3]).all(|(a, b)| (a / b - 1.0).abs() < 1e-12));
        assert_eq!(log_space(2.0, 8.0, 1), [2.0]);
    }
}
