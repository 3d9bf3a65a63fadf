//! The Hessian of a layer's squared output error in its weights: 2 E[x xᵀ].

use rayon::prelude::*;

use super::Matrix;
use crate::error::OpsError;

/// `hessian + (2 / B) xᵀx` for the K x K matrix `hessian` and B x K `activations`, as a new matrix.
///
/// One call on a zero matrix gives the Hessian of one batch. Over several calls the *means* of the batches add up, so that the result grows with
/// their number and a short batch weighs as much as a long one; [`HessianSum`] has neither fault.
///
/// # Errors
/// A matrix that is not square, activations of another K or without rows, or values that are not finite.
pub fn gptq_hessian_update(hessian: Matrix<'_>, activations: Matrix<'_>) -> Result<Vec<f32>, OpsError> {
    hessian.expect_square("the Hessian")?;
    hessian.expect_finite("the Hessian")?;
    activations.expect_rows("the activation matrix")?;
    let mut sum = HessianSum::new(hessian.columns);
    sum.add(activations)?;
    Ok(sum.mean().iter().zip(hessian.values).map(|(update, h)| h + update).collect())
}

/// Σ 2 x xᵀ over all rows of all batches, and their number: divided once, at the end.
#[derive(Debug, Clone, PartialEq)]
pub struct HessianSum {
    columns: usize,
    rows: u64,
    /// The lower triangle, row after row.
    sums: Vec<Vec<f64>>,
}

impl HessianSum {
    /// The sum over no rows, for inputs of `columns` channels.
    pub fn new(columns: usize) -> Self {
        Self { columns, rows: 0, sums: (0..columns).map(|row| vec![0.0; row + 1]).collect() }
    }

    /// Rows summed: tokens.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds the rows of a B x K matrix; nothing is added if it is refused. Sums are f64, in the order of the rows.
    ///
    /// # Errors
    /// Another number of columns, or values that are not finite.
    pub fn add(&mut self, activations: Matrix<'_>) -> Result<(), OpsError> {
        activations.expect_columns("the activation matrix", self.columns)?;
        activations.expect_finite("the activation matrix")?;
        self.sums.par_iter_mut().enumerate().for_each(|(i, sums)| {
            for x in activations.each_row() {
                let twice = 2.0 * f64::from(x[i]);
                sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += twice * f64::from(x));
            }
        });
        self.rows += activations.rows as u64;
        Ok(())
    }

    /// Adds what another sum has seen.
    ///
    /// # Errors
    /// Another number of columns.
    pub fn merge(&mut self, other: &Self) -> Result<(), OpsError> {
        if self.columns != other.columns {
            return Err(OpsError::Columns { what: "the other sum", expected: self.columns, found: other.columns });
        }
        let pairs = self.sums.iter_mut().flatten().zip(other.sums.iter().flatten());
        pairs.for_each(|(sum, other)| *sum += other);
        self.rows += other.rows;
        Ok(())
    }

    /// 2 E[x xᵀ], K x K, row after row; zeros before the first row.
    pub fn mean(&self) -> Vec<f32> {
        let at = |k: usize| {
            let (i, j) = (k / self.columns, k % self.columns);
            (self.sums[i.max(j)][i.min(j)] / self.rows.max(1) as f64) as f32
        };
        (0..self.columns * self.columns).map(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_update_by_hand_and_what_repeating_it_does() {
        let h = Matrix::new(&[1.0, 0.0, 0.0, 1.0], 2, 2).unwrap();
        let x = Matrix::new(&[1.0, 2.0, 3.0, 0.0], 2, 2).unwrap();
        // xᵀx = [[10, 2], [2, 4]] over two rows.
        let once = gptq_hessian_update(h, x).unwrap();
        assert_eq!(once, [11.0, 2.0, 2.0, 5.0]);
        let zero = [0.0; 4];
        let first = gptq_hessian_update(Matrix::new(&zero, 2, 2).unwrap(), x).unwrap();
        let twice = gptq_hessian_update(Matrix::new(&first, 2, 2).unwrap(), x).unwrap();
        assert_eq!(twice, [20.0, 4.0, 4.0, 8.0], "two equal batches add up to twice the Hessian of one");
        let mut sum = HessianSum::new(2);
        sum.add(x).unwrap();
        sum.add(x).unwrap();
        assert_eq!((sum.mean(), sum.rows()), (first, 4), "the sum divides by all rows");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let wide = Matrix::new(&[0.0; 6], 2, 3).unwrap();
        let square = Matrix::new(&[0.0; 4], 2, 2).unwrap();
        let none = Matrix::new(&[], 0, 2).unwrap();
        assert_eq!(
            gptq_hessian_update(wide, wide),
            Err(OpsError::NotSquare { what: "the Hessian", rows: 2, columns: 3 })
        );
        assert!(matches!(gptq_hessian_update(square, wide), Err(OpsError::Columns { expected: 2, found: 3, .. })));
        assert_eq!(gptq_hessian_update(square, none), Err(OpsError::NoRows { what: "the activation matrix" }));
        assert!(HessianSum::new(2).merge(&HessianSum::new(3)).is_err());
    }

    proptest! {
        #[test]
        fn unequal_batches_weigh_by_their_rows(values in prop::collection::vec(-8.0f32..8.0, 12..90), cut in 1usize..3) {
            let rows = values.len() / 3;
            let matrix = |from: usize, to: usize| Matrix::new(&values[from * 3..to * 3], to - from, 3).unwrap();
            let (mut one, mut other, mut whole) = (HessianSum::new(3), HessianSum::new(3), HessianSum::new(3));
            one.add(matrix(0, cut)).unwrap();
            other.add(matrix(cut, rows)).unwrap();
            whole.add(matrix(0, rows)).unwrap();
            one.merge(&other).unwrap();
            let single = gptq_hessian_update(Matrix::new(&[0.0; 9], 3, 3).unwrap(), matrix(0, rows)).unwrap();
            prop_assert_eq!(whole.mean(), single);
            for (i, (a, b)) in one.mean().into_iter().zip(whole.mean()).enumerate() {
                let naive: f64 = (0..rows).map(|n| f64::from(values[n * 3 + i / 3]) * f64::from(values[n * 3 + i % 3])).sum();
                prop_assert!((f64::from(a) - 2.0 * naive / rows as f64).abs() < 1e-4 && (a - b).abs() < 1e-4);
            }
        }
    }
}
