//! What is summed up while text runs: sums of each channel that add up to the same bits in whatever order, so that parts of a run can be joined.

use std::sync::Arc;

use super::stats::{ChannelStats, SampleRows};
use crate::math::exact_sum::ExactSum;

/// Sums over the inputs of one weight tensor in the making, for each matrix (expert) apart: index `matrix * columns + channel`. What they
/// come to is [`ChannelStats`].
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelSums {
    /// Experts, or 1.
    pub matrices: usize,
    /// Input channels.
    pub columns: usize,
    /// Rows seen by each matrix.
    pub counts: Vec<u64>,
    /// max |x|.
    pub abs_max: Vec<f32>,
    /// min x; infinite where the matrix saw no row.
    pub min: Vec<f32>,
    /// max x; minus infinite where the matrix saw no row.
    pub max: Vec<f32>,
    /// Σ x.
    pub sum: Vec<ExactSum>,
    /// Σ |x|.
    pub sum_abs: Vec<ExactSum>,
    /// Σ x².
    pub sum_sq: Vec<ExactSum>,
}

impl ChannelSums {
    /// Sums over no rows.
    pub fn new(matrices: usize, columns: usize) -> Self {
        let len = matrices * columns;
        let zeros = || vec![ExactSum::default(); len];
        Self {
            matrices,
            columns,
            counts: vec![0; matrices],
            abs_max: vec![0.0; len],
            min: vec![f32::INFINITY; len],
            max: vec![f32::NEG_INFINITY; len],
            sum: zeros(),
            sum_abs: zeros(),
            sum_sq: zeros(),
        }
    }

    /// Adds the sums of other rows, of the same shape.
    pub(super) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.abs_max.iter_mut().zip(&other.abs_max).for_each(|(a, b)| *a = a.max(*b));
        self.min.iter_mut().zip(&other.min).for_each(|(a, b)| *a = a.min(*b));
        self.max.iter_mut().zip(&other.max).for_each(|(a, b)| *a = a.max(*b));
        for (mine, theirs) in
            [(&mut self.sum, &other.sum), (&mut self.sum_abs, &other.sum_abs), (&mut self.sum_sq, &other.sum_sq)]
        {
            mine.iter_mut().zip(theirs).for_each(|(a, b)| a.merge(*b));
        }
    }

    /// The sums as numbers, with the rows that were kept.
    pub fn finish(self, rows: Option<Arc<SampleRows>>) -> ChannelStats {
        let numbers = |sums: &[ExactSum]| sums.iter().map(|sum| sum.to_f64()).collect();
        // Which of two zeros the smallest or largest value is depends on the order of the rows.
        let plain = |values: Vec<f32>| values.into_iter().map(|value| value + 0.0).collect();
        ChannelStats {
            matrices: self.matrices,
            columns: self.columns,
            sum: numbers(&self.sum),
            sum_abs: numbers(&self.sum_abs),
            sum_sq: numbers(&self.sum_sq),
            counts: self.counts,
            abs_max: plain(self.abs_max),
            min: plain(self.min),
            max: plain(self.max),
            complete: true,
            ranged: true,
            rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_of_zero_does_not_depend_on_the_order() {
        let of = |first: f32, then: f32| {
            let mut sums = ChannelSums::new(1, 1);
            (sums.min[0], sums.max[0], sums.abs_max[0]) = (first, first, first.abs());
            let mut other = ChannelSums::new(1, 1);
            (other.min[0], other.max[0], other.abs_max[0]) = (then, then, then.abs());
            sums.merge(&other);
            let stats = sums.finish(None);
            [stats.min[0], stats.max[0], stats.abs_max[0]].map(f32::to_bits)
        };
        assert_eq!(of(0.0, -0.0), of(-0.0, 0.0));
        assert_eq!(of(-0.0, -0.0), [0; 3]);
    }
}
