//! Ranks and rank correlation.

use super::moments::correlation;

/// The rank of each value, 1 for the smallest; equal values share the mean of their ranks (scipy's `rankdata`).
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for ties in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = f64::from(before) + (ties.len() + 1) as f64 / 2.0;
        for &at in ties {
            ranks[at] = rank;
        }
        before += ties.len() as u32;
    }
    ranks
}

/// Spearman's rank correlation: Pearson's correlation of the average ranks, in -1..=1; NaN where one list does not vary or is shorter than two.
///
/// # Panics
/// If they differ in length.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    correlation(&ranks(x), &ranks(y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_share_their_mean_rank() {
        assert_eq!(ranks(&[2.0, 1.0, 2.0, -5.0, 2.0]), [4.0, 2.0, 4.0, 1.0, 4.0]);
        assert_eq!(ranks(&[0.0, -0.0]), [1.5, 1.5]);
        assert!(ranks(&[]).is_empty());
    }

    #[test]
    fn worked_numbers() {
        // scipy.stats.spearmanr
        let x = [0.5, -1.25, 3.0, 2.0, 2.0, -0.75, 8.5, 0.125];
        let y = [1.0, -2.0, 2.5, 4.0, 1.5, 0.0, 6.0, -0.5];
        assert!((spearman(&x, &y) - 0.934_148_484_292_342).abs() < 1e-12);
        let cubes = x.map(|x| x * x * x);
        assert!((spearman(&x, &cubes) - 1.0).abs() < 1e-12, "only the order counts");
        assert!(spearman(&x, &[1.0; 8]).is_nan() && spearman(&[], &[]).is_nan());
    }
}
