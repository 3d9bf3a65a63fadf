//! The diagonal of the empirical Fisher information: the mean of squared gradients.

use super::Matrix;
use crate::error::OpsError;

/// `mean_n g_nj²` of the N x P matrix `gradients`, one row a sample; P values, in squares of the gradients' unit. Sums are f64.
///
/// # Errors
/// No rows, or values that are not finite.
pub fn fisher_information(gradients: Matrix<'_>) -> Result<Vec<f32>, OpsError> {
    gradients.expect_rows("the gradient matrix")?;
    let mut sum = FisherSum::new(gradients.columns);
    sum.add(gradients)?;
    Ok(sum.diagonal())
}

/// Squared gradients of any number of samples, in any number of parts: the parts' sizes make no difference to the mean.
#[derive(Debug, Clone, PartialEq)]
pub struct FisherSum {
    sums: Vec<f64>,
    samples: u64,
}

impl FisherSum {
    /// The sum over no samples, for `parameters` parameters.
    pub fn new(parameters: usize) -> Self {
        Self { sums: vec![0.0; parameters], samples: 0 }
    }

    /// Samples seen.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Adds the rows of an N x P matrix; nothing is added if it is refused.
    ///
    /// # Errors
    /// Another number of columns, or values that are not finite.
    pub fn add(&mut self, gradients: Matrix<'_>) -> Result<(), OpsError> {
        gradients.expect_columns("the gradient matrix", self.sums.len())?;
        gradients.expect_finite("the gradient matrix")?;
        for row in gradients.each_row() {
            row.iter().zip(&mut self.sums).for_each(|(&g, sum)| *sum += f64::from(g) * f64::from(g));
        }
        self.samples += gradients.rows as u64;
        Ok(())
    }

    /// Adds what another sum has seen.
    ///
    /// # Errors
    /// Another number of parameters.
    pub fn merge(&mut self, other: &Self) -> Result<(), OpsError> {
        if self.sums.len() != other.sums.len() {
            let (expected, found) = (self.sums.len(), other.sums.len());
            return Err(OpsError::Columns { what: "the other sum", expected, found });
        }
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, other)| *sum += other);
        self.samples += other.samples;
        Ok(())
    }

    /// The mean of the squares; zeros before the first sample.
    pub fn diagonal(&self) -> Vec<f32> {
        self.sums.iter().map(|sum| (sum / self.samples.max(1) as f64) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn means_of_squares_by_hand() {
        let gradients = Matrix::new(&[1.0, 2.0, 3.0, 4.0], 2, 2).unwrap();
        assert_eq!(fisher_information(gradients).unwrap(), [5.0, 10.0]);
        let none = Matrix::new(&[], 0, 2).unwrap();
        assert_eq!(fisher_information(none), Err(OpsError::NoRows { what: "the gradient matrix" }));
    }

    #[test]
    fn refused_gradients_leave_no_trace() {
        let mut sum = FisherSum::new(2);
        assert!(sum.add(Matrix::new(&[1.0, 2.0, 3.0, f32::NAN], 2, 2).unwrap()).is_err());
        assert!(sum.add(Matrix::new(&[1.0; 3], 1, 3).unwrap()).is_err());
        assert!(sum.merge(&FisherSum::new(3)).is_err());
        assert_eq!((sum.samples(), sum.diagonal()), (0, vec![0.0, 0.0]));
    }

    proptest! {
        #[test]
        fn parts_of_any_size_are_the_whole(values in prop::collection::vec(-1e3f32..1e3, 0..60), cut in 0usize..20) {
            let rows = values.len() / 3;
            let cut = cut.min(rows);
            let part = |from: usize, to: usize| {
                let mut sum = FisherSum::new(3);
                sum.add(Matrix::new(&values[from * 3..to * 3], to - from, 3).unwrap()).unwrap();
                sum
            };
            let (whole, mut merged) = (part(0, rows), part(0, cut));
            merged.merge(&part(cut, rows)).unwrap();
            prop_assert_eq!(merged.samples(), whole.samples());
            for (j, (a, b)) in merged.diagonal().into_iter().zip(whole.diagonal()).enumerate() {
                prop_assert!((a - b).abs() <= 1e-6 * b.abs());
                let naive = (0..rows).map(|n| f64::from(values[n * 3 + j]).powi(2)).sum::<f64>() / rows.max(1) as f64;
                prop_assert!((f64::from(b) - naive).abs() <= 1e-6 * naive);
            }
        }
    }
}
