//! The factor that GPTQ's error feedback divides by: upper triangular U with H⁻¹ = UᵀU.

use rayon::prelude::*;

use super::Matrix;
use crate::error::OpsError;
use crate::math::cholesky::cholesky;

/// The largest damping that is tried, as a share of the mean of the diagonal.
const MOST_DAMPING: f64 = 1.0;
/// The damping of the second attempt where the first was without any.
const LEAST_DAMPING: f64 = 1e-6;

/// U, K x K, with H⁻¹ = UᵀU, and how it was made.
///
/// H⁻¹ itself in its place gives the right update for the first column only: after it the inverse of what remains is another one, which the rows
/// of U hold and those of H⁻¹ do not.
#[derive(Debug, Clone, PartialEq)]
pub struct UpperFactor {
    columns: usize,
    values: Vec<f32>,
    damping: f64,
    retries: u32,
    dead: Vec<usize>,
}

impl UpperFactor {
    /// Takes a factor that was made elsewhere.
    ///
    /// # Errors
    /// What is not square, not finite, has anything but zeros below the diagonal (an inverse does), or no positive diagonal.
    pub fn from_matrix(factor: Matrix<'_>) -> Result<Self, OpsError> {
        factor.expect_square("the factor")?;
        factor.expect_finite("the factor")?;
        for (row, values) in factor.each_row().enumerate() {
            let wrong = |&column: &usize| if column < row { values[column] != 0.0 } else { values[row] <= 0.0 };
            if let Some(column) = (0..=row).find(wrong) {
                return Err(OpsError::NotUpper { row, column, value: values[column] });
            }
        }
        let (columns, values) = (factor.columns, factor.values.to_vec());
        Ok(Self { columns, values, damping: 0.0, retries: 0, dead: Vec::new() })
    }

    /// Factors the K x K matrix `hessian` (its lower triangle is read) after adding `damp` times the mean of its diagonal to the diagonal; ten times
    /// more after each failure, up to 1. A channel that was never excited (a zero on the diagonal) gets a 1 there: its column neither takes nor
    /// gives feedback. 0.01 is GPTQ's default.
    ///
    /// # Errors
    /// A matrix that is not square, not finite, or not positive definite with any damping; a damping that is negative or not a number.
    pub fn of_hessian(hessian: Matrix<'_>, damp: f64) -> Result<Self, OpsError> {
        hessian.expect_square("the Hessian")?;
        hessian.expect_finite("the Hessian")?;
        if !(damp >= 0.0 && damp.is_finite()) {
            return Err(OpsError::DampingShare { share: damp });
        }
        let columns = hessian.columns;
        let diagonal = |i: usize| f64::from(hessian.values[i * columns + i]);
        let mean = (0..columns).map(diagonal).sum::<f64>() / columns.max(1) as f64;
        let dead: Vec<usize> = (0..columns).filter(|&i| diagonal(i) == 0.0).collect();
        let (mut damping, mut retries) = (damp, 0);
        let lower = loop {
            match factored(hessian, &dead, damping * mean) {
                Ok(lower) => break lower,
                Err(_) if damping < MOST_DAMPING => {
                    damping = (damping * 10.0).clamp(LEAST_DAMPING, MOST_DAMPING);
                    retries += 1;
                }
                Err(column) => return Err(OpsError::NotPositiveDefinite { column, damping }),
            }
        };
        Ok(Self { columns, values: inverted(&lower, columns), damping, retries, dead })
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// U, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// What was added to the diagonal, as a share of its mean.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Factorisations that failed before.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// The columns whose channel was never excited, ascending.
    pub fn dead(&self) -> &[usize] {
        &self.dead
    }

    /// Row `row` of U from the diagonal on.
    pub(super) fn tail(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns + row..(row + 1) * self.columns]
    }
}

/// L with L·Lᵀ = the damped matrix, rows and columns in reverse; the column where it fails.
fn factored(hessian: Matrix<'_>, dead: &[usize], added: f64) -> Result<Vec<f64>, usize> {
    let columns = hessian.columns;
    let mut a = vec![0.0; columns * columns];
    a.par_chunks_mut(columns.max(1)).enumerate().for_each(|(i, row)| {
        for (j, value) in row[..=i].iter_mut().enumerate() {
            *value = f64::from(hessian.values[(columns - 1 - j) * columns + columns - 1 - i]);
        }
        row[i] += added;
    });
    for &column in dead {
        a[(columns - 1 - column) * (columns + 1)] = 1.0;
    }
    match cholesky(&mut a, columns) {
        Ok(()) => Ok(a),
        Err(failed) => Err(columns - 1 - failed.index),
    }
}

/// The inverse of R, the factor turned round: with H = R·Rᵀ and R upper triangular, U = R⁻¹ is the upper factor of H⁻¹ and needs no inverse of H.
fn inverted(lower: &[f64], columns: usize) -> Vec<f32> {
    let mut u = vec![0.0f32; columns * columns];
    u.par_chunks_mut(columns.max(1)).enumerate().for_each(|(i, row)| {
        let mut left = vec![0.0f64; columns];
        left[i] = 1.0;
        for k in i..columns {
            // Row k of R from the diagonal on is row `last - k` of the factor, read backwards from its diagonal.
            let from = (columns - 1 - k) * columns;
            let other = &lower[from..=from + columns - 1 - k];
            let value = left[k] / other[columns - 1 - k];
            left[k] = value;
            let rest = other[..columns - 1 - k].iter().rev();
            left[k + 1..].iter_mut().zip(rest).for_each(|(left, r)| *left -= value * r);
        }
        row.iter_mut().zip(left).for_each(|(u, value)| *u = value as f32);
    });
    u
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hessian(columns: usize, seed: u32) -> Vec<f32> {
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 8e6 - 1.0;
        let rows: Vec<f32> = (0..3 * columns * columns).map(value).collect();
        let at = |i: usize, j: usize| rows.chunks(columns).map(|row| row[i] * row[j]).sum::<f32>();
        (0..columns * columns).map(|k| at((k / columns).max(k % columns), (k / columns).min(k % columns))).collect()
    }

    #[test]
    fn a_factor_by_hand() {
        // H = [[2, 1], [1, 2]]: H⁻¹ = [[2, -1], [-1, 2]] / 3 = UᵀU.
        let factor = UpperFactor::of_hessian(Matrix::new(&[2.0, 1.0, 1.0, 2.0], 2, 2).unwrap(), 0.0).unwrap();
        let (a, b) = ((2.0f32 / 3.0).sqrt(), -1.0 / 6.0f32.sqrt());
        let expected = [a, b, 0.0, 0.5f32.sqrt()];
        assert!(factor.values().iter().zip(expected).all(|(u, e)| (u - e).abs() < 1e-6), "{factor:?}");
        assert_eq!((factor.retries(), factor.damping(), factor.dead()), (0, 0.0, &[][..]));
    }

    #[test]
    fn dead_columns_stand_alone() {
        let h = [4.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 4.0];
        let factor = UpperFactor::of_hessian(Matrix::new(&h, 3, 3).unwrap(), 0.01).unwrap();
        assert_eq!(factor.dead(), [1]);
        assert_eq!((factor.tail(1), factor.values()[1]), (&[1.0, 0.0][..], 0.0));
        let all_dead = UpperFactor::of_hessian(Matrix::new(&[0.0; 4], 2, 2).unwrap(), 0.01).unwrap();
        assert_eq!((all_dead.values(), all_dead.dead().len()), (&[1.0, 0.0, 0.0, 1.0][..], 2));
    }

    #[test]
    fn damping_grows_until_it_helps_or_gives_up() {
        // Rank one: [1 1] twice; any damping helps.
        let flat = UpperFactor::of_hessian(Matrix::new(&[1.0; 4], 2, 2).unwrap(), 0.0).unwrap();
        assert_eq!((flat.retries(), flat.damping()), (1, LEAST_DAMPING));
        // Eigenvalues 1.5 and -0.5: 0.5 has to be added.
        let bent = UpperFactor::of_hessian(Matrix::new(&[0.5, 1.0, 1.0, 0.5], 2, 2).unwrap(), 0.01);
        assert_eq!(bent, Err(OpsError::NotPositiveDefinite { column: 0, damping: 1.0 }));
        let bent = UpperFactor::of_hessian(Matrix::new(&[0.6, 1.0, 1.0, 0.6], 2, 2).unwrap(), 0.01).unwrap();
        assert_eq!((bent.retries(), bent.damping()), (2, 1.0));
    }

    #[test]
    fn what_is_no_factor_is_refused() {
        let take = |values: &[f32]| UpperFactor::from_matrix(Matrix::new(values, 2, 2).unwrap());
        assert!(take(&[1.0, 0.5, 0.0, 2.0]).is_ok());
        assert_eq!(take(&[1.0, 0.5, 0.5, 2.0]), Err(OpsError::NotUpper { row: 1, column: 0, value: 0.5 }));
        assert_eq!(take(&[1.0, 0.5, 0.0, 0.0]), Err(OpsError::NotUpper { row: 1, column: 1, value: 0.0 }));
        assert!(take(&[1.0, f32::NAN, 0.0, 1.0]).is_err());
        let hessian = Matrix::new(&[1.0], 1, 1).unwrap();
        assert_eq!(UpperFactor::of_hessian(hessian, -0.1), Err(OpsError::DampingShare { share: -0.1 }));
        assert!(matches!(take(&[1.0, 0.5, 0.5, 2.0]).unwrap_err().hint(), Some(hint) if hint.contains("UᵀU")));
    }

    proptest! {
        #[test]
        fn utu_times_the_damped_matrix_is_the_identity(columns in 1usize..40, seed in any::<u32>()) {
            let h = hessian(columns, seed);
            let factor = UpperFactor::of_hessian(Matrix::new(&h, columns, columns).unwrap(), 0.01).unwrap();
            let u = |i: usize, j: usize| f64::from(factor.values()[i * columns + j]);
            let mean = (0..columns).map(|i| f64::from(h[i * columns + i])).sum::<f64>() / columns as f64;
            let damped = |i: usize, j: usize| f64::from(h[i * columns + j]) + if i == j { factor.damping() * mean } else { 0.0 };
            let inverse: Vec<f64> = (0..columns * columns)
                .map(|k| (0..columns).map(|r| u(r, k / columns) * u(r, k % columns)).sum())
                .collect();
            for i in 0..columns {
                prop_assert!((0..i).all(|j| u(i, j) == 0.0) && u(i, i) > 0.0);
                for j in 0..columns {
                    let product: f64 = (0..columns).map(|k| inverse[i * columns + k] * damped(k, j)).sum();
                    prop_assert!((product - f64::from(u8::from(i == j))).abs() < 1e-3, "{} {}: {}", i, j, product);
                }
            }
        }
    }
}
