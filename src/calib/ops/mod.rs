//! The calibration operations that AWQ, GPTQ and Fisher-weighted methods are made of, on plain f32 matrices: the definitions of boostr's
//! `CalibrationOps`, with its defects mended where they change results.
//!
//! They are small and exact rather than fast, and know nothing of models: converting a model goes through `quant`, which has its own blocked
//! kernels for the TCQ4 grid.
//!
//! | operation | shapes | result |
//! | --- | --- | --- |
//! | [`awq_channel_scores`] | activations N x K, weights M x K | K scores |
//! | [`fisher_information`], [`FisherSum`] | gradients N x P | P means of squares |
//! | [`gptq_hessian_update`], [`HessianSum`] | K x K, activations B x K | K x K |
//! | [`UpperFactor`] | K x K | U with H⁻¹ = UᵀU |
//! | [`gptq_quantize_column`] | weights M x K, U K x K | weights, scales and zeros |

mod factor;
mod fisher;
mod hessian;
mod quantize;

pub use factor::UpperFactor;
pub use fisher::{FisherSum, fisher_information};
pub use hessian::{HessianSum, gptq_hessian_update};
pub use quantize::{ColumnGrid, GridRule, QuantizedColumns, gptq_quantize_column};

use crate::error::OpsError;

/// A matrix of f32 values, row after row, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    /// Views `values` as `rows` rows of `columns` values each.
    ///
    /// # Errors
    /// [`OpsError::Size`] if there are more or fewer values.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Result<Self, OpsError> {
        if rows.checked_mul(columns) == Some(values.len()) {
            Ok(Self { values, rows, columns })
        } else {
            Err(OpsError::Size { rows, columns, found: values.len() })
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values, row after row.
    pub fn values(&self) -> &'a [f32] {
        self.values
    }

    /// One row after the other.
    fn each_row(&self) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let columns = self.columns;
        let values = self.values;
        (0..self.rows).map(move |row| &values[row * columns..][..columns])
    }

    fn expect_columns(&self, what: &'static str, expected: usize) -> Result<(), OpsError> {
        if self.columns == expected { Ok(()) } else { Err(OpsError::Columns { what, expected, found: self.columns }) }
    }

    fn expect_rows(&self, what: &'static str) -> Result<(), OpsError> {
        if self.rows == 0 { Err(OpsError::NoRows { what }) } else { Ok(()) }
    }

    fn expect_square(&self, what: &'static str) -> Result<(), OpsError> {
        let (rows, columns) = (self.rows, self.columns);
        if rows == columns { Ok(()) } else { Err(OpsError::NotSquare { what, rows, columns }) }
    }

    fn expect_finite(&self, what: &'static str) -> Result<(), OpsError> {
        match self.values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let (row, column) = (at / self.columns, at % self.columns);
                Err(OpsError::NotFinite { what, row, column, value: self.values[at] })
            }
        }
    }
}

/// How much each input channel contributes at most: `score_j = mean_i(|w_ij| * max_n |x_nj|)`, in units of the output.
///
/// `activations` are N x K, `weights` M x K; the result has K values. Sums are f64.
///
/// # Errors
/// Operands of different K, without rows, or with values that are not finite.
pub fn awq_channel_scores(activations: Matrix<'_>, weights: Matrix<'_>) -> Result<Vec<f32>, OpsError> {
    weights.expect_columns("the weight matrix", activations.columns)?;
    for (what, matrix) in [("the activation matrix", activations), ("the weight matrix", weights)] {
        matrix.expect_rows(what)?;
        matrix.expect_finite(what)?;
    }
    let mut largest = vec![0.0f32; activations.columns];
    for row in activations.each_row() {
        row.iter().zip(&mut largest).for_each(|(x, largest)| *largest = largest.max(x.abs()));
    }
    let mut sums = vec![0.0f64; weights.columns];
    for row in weights.each_row() {
        row.iter().zip(&mut sums).for_each(|(w, sum)| *sum += f64::from(w.abs()));
    }
    let score = |(sum, largest): (f64, f32)| (sum / weights.rows as f64 * f64::from(largest)) as f32;
    Ok(sums.into_iter().zip(largest).map(score).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scores_by_hand() {
        let x = Matrix::new(&[1.0, -2.0, 3.0, -1.0], 2, 2).unwrap();
        let w = Matrix::new(&[2.0, 1.0, 1.0, 3.0], 2, 2).unwrap();
        // max|x| = 3, 2; mean|w| = 1.5, 2.
        assert_eq!(awq_channel_scores(x, w).unwrap(), [4.5, 4.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_shape() {
        let none = Matrix::new(&[], 0, 2).unwrap();
        let two = Matrix::new(&[1.0, 2.0], 1, 2).unwrap();
        let one = Matrix::new(&[1.0], 1, 1).unwrap();
        assert_eq!(Matrix::new(&[1.0; 5], 2, 3).unwrap_err(), OpsError::Size { rows: 2, columns: 3, found: 5 });
        assert!(Matrix::new(&[], usize::MAX, 2).is_err(), "sizes beyond what can be addressed");
        let differ = OpsError::Columns { what: "the weight matrix", expected: 2, found: 1 };
        assert_eq!(awq_channel_scores(two, one), Err(differ));
        assert_eq!(awq_channel_scores(none, two), Err(OpsError::NoRows { what: "the activation matrix" }));
        assert_eq!(awq_channel_scores(two, none), Err(OpsError::NoRows { what: "the weight matrix" }));
        let bad = Matrix::new(&[1.0, f32::INFINITY], 1, 2).unwrap();
        let found = OpsError::NotFinite { what: "the weight matrix", row: 0, column: 1, value: f32::INFINITY };
        assert_eq!(awq_channel_scores(two, bad), Err(found));
        assert_eq!(
            OpsError::Size { rows: 2, columns: 3, found: 5 }.to_string(),
            "a matrix of 2 x 3 has 6 values, found 5"
        );
    }

    proptest! {
        #[test]
        fn scores_follow_their_channels_and_scale(values in prop::collection::vec(-4.0f32..4.0, 12), swap in 0usize..4, factor in 0.1f32..8.0) {
            let x = &values[..8];
            let w: Vec<f32> = values.iter().rev().copied().collect();
            let score = |x: &[f32], w: &[f32]| {
                awq_channel_scores(Matrix::new(x, 2, 4).unwrap(), Matrix::new(w, 3, 4).unwrap()).unwrap()
            };
            let base = score(x, &w);
            let turned = |m: &[f32]| m.chunks(4).flat_map(|row| { let mut row = row.to_vec(); row.swap(0, swap); row }).collect::<Vec<f32>>();
            let mut expected = base.clone();
            expected.swap(0, swap);
            prop_assert_eq!(score(&turned(x), &turned(&w)), expected);
            let scaled: Vec<f32> = x.iter().map(|x| x * factor).collect();
            for (scaled, base) in score(&scaled, &w).iter().zip(&base) {
                prop_assert!((scaled - base * factor).abs() <= 1e-5 * base.abs() * factor + 1e-6);
            }
        }
    }
}
