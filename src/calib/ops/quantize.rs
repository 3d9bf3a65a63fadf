//! GPTQ on a uniform grid: columns are rounded one after the other, and those that follow make up for the error.

use rayon::prelude::*;

use super::{Matrix, UpperFactor};
use crate::error::OpsError;

/// A range below which an asymmetric group counts as constant, and a divisor below which the reference divides by 1.
const TINY: f32 = 1e-10;

/// Whether the grid has the reference's faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GridRule {
    /// Symmetric: integers -2^(b-1) to 2^(b-1) - 1 with the scale `absmax / (2^(b-1) - 1)`. Asymmetric: the range is extended to zero, so that no group is
    /// clipped.
    #[default]
    Corrected,
    /// As boostr has it. Symmetric: the scale `absmax / ((2^b - 1) / 2)` with codes clamped to half-integers (-7.5 to 6.5 at 4 bits), which clips the largest
    /// positive weight. Asymmetric: a group that does not hold zero is clipped at its far end. A diagonal of U below 1e-10 counts as 1.
    Reference,
}

/// The grid of [`gptq_quantize_column`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnGrid {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Columns that share a scale; divides K.
    pub group: usize,
    /// Whether zero points are zero.
    pub symmetric: bool,
    /// Whether the reference's faults are kept.
    pub rule: GridRule,
}

/// What [`gptq_quantize_column`] makes of M x K weights.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedColumns {
    /// The weights on their grid, M x K.
    pub values: Vec<f32>,
    /// The steps, M x K/g.
    pub scales: Vec<f32>,
    /// The codes of zero, M x K/g; zeros for a symmetric grid.
    pub zeros: Vec<f32>,
}

/// The grid of one group of a row.
#[derive(Clone, Copy)]
struct Steps {
    scale: f32,
    zero: f32,
}

impl ColumnGrid {
    fn check(self, columns: usize) -> Result<(), OpsError> {
        if self.group == 0 || !columns.is_multiple_of(self.group) {
            return Err(OpsError::Group { group: self.group, columns });
        }
        if (2..=8).contains(&self.bits) { Ok(()) } else { Err(OpsError::Bits { bits: self.bits }) }
    }

    /// The largest code of an asymmetric grid: 2^b - 1.
    fn levels(self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// The grid that covers the weights of a group.
    fn steps(self, weights: &[f32]) -> Steps {
        if self.symmetric {
            let largest = weights.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
            let half = if self.rule == GridRule::Reference { self.levels() / 2.0 } else { (self.levels() - 1.0) / 2.0 };
            return Steps { scale: if largest == 0.0 { 1.0 } else { largest / half }, zero: 0.0 };
        }
        let reach = if self.rule == GridRule::Reference { [f32::INFINITY, f32::NEG_INFINITY] } else { [0.0; 2] };
        let [min, max] = weights.iter().fold(reach, |[min, max], &w| [min.min(w), max.max(w)]);
        let range = max - min;
        let scale = if range.abs() < TINY { 1.0 } else { range / self.levels() };
        Steps { scale, zero: (-min / scale).round().clamp(0.0, self.levels()) }
    }

    /// The value of the grid next to a weight.
    fn nearest(self, weight: f32, Steps { scale, zero }: Steps) -> f32 {
        match (self.symmetric, self.rule) {
            (false, _) => ((weight / scale + zero).round().clamp(0.0, self.levels()) - zero) * scale,
            (true, GridRule::Corrected) => {
                let half = f32::midpoint(self.levels(), 1.0);
                (weight / scale).round().clamp(-half, half - 1.0) * scale
            }
            (true, GridRule::Reference) => {
                let half = self.levels() / 2.0;
                ((weight / scale).round().clamp(-half, half - 1.0) + half) * scale - half * scale
            }
        }
    }

    fn divisor(self, diagonal: f32) -> f32 {
        if self.rule == GridRule::Reference && diagonal.abs() < TINY { 1.0 } else { diagonal }
    }
}

/// Rounds the columns of the M x K `weights` in their order. The error of column c, divided by `U[c][c]`, is taken off every later column j times `U[c][j]`.
/// The grid of a group is set when its first column is reached, from the weights as they are then, and kept. Halves round away from zero.
/// Dead columns ([`UpperFactor::dead`]) keep their weights, rounded: a text to come may excite them.
///
/// # Errors
/// A factor of another K, weights that are not finite, groups that do not divide K, or bits without a grid.
pub fn gptq_quantize_column(
    weights: Matrix<'_>,
    factor: &UpperFactor,
    grid: ColumnGrid,
) -> Result<QuantizedColumns, OpsError> {
    weights.expect_columns("the weight matrix", factor.columns())?;
    weights.expect_finite("the weight matrix")?;
    grid.check(weights.columns)?;
    let one = |row: &[f32]| quantize_row(row.to_vec(), factor, grid);
    let rows: Vec<(Vec<f32>, Vec<Steps>)> = weights.values.par_chunks(weights.columns.max(1)).map(one).collect();
    let steps = || rows.iter().flat_map(|(_, steps)| steps);
    Ok(QuantizedColumns {
        scales: steps().map(|steps| steps.scale).collect(),
        zeros: steps().map(|steps| steps.zero).collect(),
        values: rows.iter().flat_map(|(values, _)| values).copied().collect(),
    })
}

fn quantize_row(mut row: Vec<f32>, factor: &UpperFactor, grid: ColumnGrid) -> (Vec<f32>, Vec<Steps>) {
    let mut all = Vec::with_capacity(row.len() / grid.group);
    for first in (0..row.len()).step_by(grid.group) {
        let steps = grid.steps(&row[first..first + grid.group]);
        for column in first..first + grid.group {
            let tail = factor.tail(column);
            let value = grid.nearest(row[column], steps);
            let error = (row[column] - value) / grid.divisor(tail[0]);
            row[column] = value;
            row[column + 1..].iter_mut().zip(&tail[1..]).for_each(|(w, u)| *w -= error * u);
        }
        all.push(steps);
    }
    (row, all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const U: [f32; 16] = [1.0, 0.5, 0.25, 0.1, 0.0, 0.8, 0.2, 0.1, 0.0, 0.0, 0.9, 0.3, 0.0, 0.0, 0.0, 0.7];
    const W: [f32; 4] = [0.10, -0.35, 0.62, 0.27];

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} is not {expected:?}");
    }

    fn quantize(weights: &[f32], factor: &[f32], group: usize, symmetric: bool, rule: GridRule) -> QuantizedColumns {
        let columns = factor.len().isqrt();
        let factor = UpperFactor::from_matrix(Matrix::new(factor, columns, columns).unwrap()).unwrap();
        let weights = Matrix::new(weights, weights.len() / columns, columns).unwrap();
        gptq_quantize_column(weights, &factor, ColumnGrid { bits: 4, group, symmetric, rule }).unwrap()
    }

    fn identity(columns: usize) -> Vec<f32> {
        (0..columns * columns).map(|k| f32::from(u8::from(k % (columns + 1) == 0))).collect()
    }

    #[test]
    fn the_reference_by_its_worked_numbers() {
        let asymmetric = quantize(&W, &U, 2, false, GridRule::Reference);
        close(&asymmetric.values, &[0.09, -0.36, 0.347_875, 0.185_533_3]);
        close(&asymmetric.scales, &[0.03, 0.023_191_7]);
        assert_eq!(asymmetric.zeros, [12.0, 0.0]);
        let symmetric = quantize(&W, &U, 2, true, GridRule::Reference);
        close(&symmetric.values, &[0.093_333_3, -0.35, 0.536_611_1, 0.247_666_7]);
        close(&symmetric.scales, &[0.046_666_7, 0.082_555_6]);
        let edge = quantize(&[1.0, -1.0, 0.5, 0.25], &identity(4), 4, true, GridRule::Reference);
        close(&edge.values, &[0.866_666_8, -0.933_333_3, 0.533_333_4, 0.266_666_8]);
        close(&edge.scales, &[0.133_333_3]);
    }

    #[test]
    fn the_corrected_grid_by_hand() {
        let edge = quantize(&[1.0, -1.0, 0.6, 0.25], &identity(4), 4, true, GridRule::Corrected);
        // Scale 1/7: codes 7, -7, 4.2 and 1.75.
        close(&edge.values, &[1.0, -1.0, 4.0 / 7.0, 2.0 / 7.0]);
        // Errors .01 and .00625 leave .61625 and .268375 for the second group; with zero in its range the step is .61625 / 15, the codes 15 and 7.
        let asymmetric = quantize(&W, &U, 2, false, GridRule::Corrected);
        close(&asymmetric.values, &[0.09, -0.36, 0.616_25, 0.287_583_3]);
        close(&asymmetric.scales, &[0.03, 0.041_083_3]);
        assert_eq!(asymmetric.zeros, [12.0, 0.0]);
    }

    #[test]
    fn constant_and_zero_groups() {
        for rule in [GridRule::Corrected, GridRule::Reference] {
            assert_eq!(quantize(&[0.0; 4], &identity(4), 2, true, rule).values, [0.0; 4]);
            let zero = quantize(&[0.0; 4], &identity(4), 2, false, rule);
            assert_eq!((zero.values, zero.scales), (vec![0.0; 4], vec![1.0; 2]));
        }
        let constant = |rule| quantize(&[0.3; 4], &identity(4), 4, false, rule).values[0];
        assert_eq!(constant(GridRule::Reference), 0.0, "no range, step 1: the reference loses a constant");
        assert!((constant(GridRule::Corrected) - 0.3).abs() < 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let factor = UpperFactor::from_matrix(Matrix::new(&U, 4, 4).unwrap()).unwrap();
        let weights = Matrix::new(&W, 1, 4).unwrap();
        let grid = ColumnGrid { bits: 4, group: 2, symmetric: true, rule: GridRule::Corrected };
        let refused = |weights, grid| gptq_quantize_column(weights, &factor, grid).unwrap_err();
        assert_eq!(refused(weights, ColumnGrid { group: 0, ..grid }), OpsError::Group { group: 0, columns: 4 });
        assert_eq!(refused(weights, ColumnGrid { group: 3, ..grid }), OpsError::Group { group: 3, columns: 4 });
        assert_eq!(refused(weights, ColumnGrid { bits: 1, ..grid }), OpsError::Bits { bits: 1 });
        assert!(matches!(
            refused(Matrix::new(&W, 2, 2).unwrap(), grid),
            OpsError::Columns { expected: 4, found: 2, .. }
        ));
        let nan = [0.0, f32::NAN, 0.0, 0.0];
        let found = refused(Matrix::new(&nan, 1, 4).unwrap(), grid);
        assert!(matches!(found, OpsError::NotFinite { row: 0, column: 1, .. }));
    }

    proptest! {
        #[test]
        fn without_feedback_nothing_is_further_than_half_a_step(
            weights in prop::collection::vec(-3.0f32..3.0, 16), symmetric in any::<bool>(), bits in 2u32..=8,
        ) {
            let factor = UpperFactor::from_matrix(Matrix::new(&identity(8), 8, 8).unwrap()).unwrap();
            let grid = ColumnGrid { bits, group: 4, symmetric, rule: GridRule::Corrected };
            let found = gptq_quantize_column(Matrix::new(&weights, 2, 8).unwrap(), &factor, grid).unwrap();
            for (i, (a, b)) in found.values.iter().zip(&weights).enumerate() {
                prop_assert!((a - b).abs() <= 0.500_1 * found.scales[i / 4] + 1e-6, "{} {}", a, b);
            }
        }
    }

    #[test]
    fn feedback_lowers_the_output_error() {
        let (mut with, mut without) = (0.0, 0.0);
        for seed in 0..20u32 {
            let value =
                |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed << 20) >> 8) as f32 / 8e6 - 1.0;
            let mut x: Vec<f32> = (0..64 * 8).map(value).collect();
            x.chunks_mut(8).for_each(|row| (1..8).for_each(|j| row[j] = 0.3 * row[j] + row[j - 1]));
            let weights: Vec<f32> = (0..16 * 8).map(|i| value(i + 9999)).collect();
            let mut sum = super::super::HessianSum::new(8);
            sum.add(Matrix::new(&x, 64, 8).unwrap()).unwrap();
            let h = sum.mean();
            let grid = ColumnGrid { bits: 4, group: 8, symmetric: false, rule: GridRule::Corrected };
            let error = |factor: &UpperFactor| -> f64 {
                let found = gptq_quantize_column(Matrix::new(&weights, 16, 8).unwrap(), factor, grid).unwrap();
                let errors: Vec<f32> = found.values.iter().zip(&weights).map(|(a, b)| a - b).collect();
                errors.chunks(8).map(|e| (0..64).map(|k| f64::from(h[k] * e[k / 8] * e[k % 8])).sum::<f64>()).sum()
            };
            with += error(&UpperFactor::of_hessian(Matrix::new(&h, 8, 8).unwrap(), 0.01).unwrap());
            without += error(&UpperFactor::from_matrix(Matrix::new(&identity(8), 8, 8).unwrap()).unwrap());
        }
        assert!(with < 0.95 * without, "{with} {without}");
    }
}
