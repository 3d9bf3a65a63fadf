//! The second moment of a layer's input, damped and factored for error feedback.

use rayon::prelude::*;
use serde::Serialize;

use super::noise::ActivationNoise;
use crate::math::cholesky::cholesky;
use crate::math::products::{LANES, Lane, TOGETHER, add_products, add_scaled};

/// The largest damping that is tried, as a share of the mean of the diagonal.
const MOST_DAMPING: f64 = 1.0;

/// How a matrix was made positive definite.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Damping {
    /// What was added to the diagonal, as a share of its mean.
    pub share: f64,
    /// Factorisations that failed before, each with a tenth of the damping of the next.
    pub retries: u32,
}

/// A square matrix, cut into slabs of [`TOGETHER`] columns that each lie in one piece, row after row: sums over rows read memory in its order.
#[derive(Debug)]
pub(super) struct Slabs {
    columns: usize,
    values: Vec<[f32; TOGETHER]>,
}

impl Slabs {
    /// Cuts the matrix whose elements `at` gives, by row and column.
    fn new(columns: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let mut values = vec![[0.0; TOGETHER]; columns * columns.div_ceil(TOGETHER)];
        values.par_chunks_exact_mut(columns).enumerate().for_each(|(slab, rows)| {
            for (row, values) in rows.iter_mut().enumerate() {
                for (k, value) in values.iter_mut().enumerate().take(columns - slab * TOGETHER) {
                    *value = at(row, slab * TOGETHER + k);
                }
            }
        });
        Self { columns, values }
    }

    /// The rows of the slab that begins with `column`.
    pub(super) fn slab(&self, column: usize) -> &[[f32; TOGETHER]] {
        &self.values[column / TOGETHER * self.columns..][..self.columns]
    }

    /// One element.
    pub(super) fn at(&self, row: usize, column: usize) -> f32 {
        self.slab(column)[row][column % TOGETHER]
    }
}

/// What codes are chosen by: H, the order in which columns are rounded, and the feedback of their errors.
#[derive(Debug)]
pub struct Curvature {
    columns: usize,
    hessian: Slabs,
    order: Vec<u32>,
    feedback: Slabs,
    /// R_kk² by position.
    pivots: Vec<f32>,
    /// What noise takes from each column.
    lost: Option<Vec<f32>>,
    damping: Damping,
}

impl Curvature {
    /// Factors `hessian` (`columns` x `columns`, symmetric, in the basis of the rotated weights) after adding `damp` times the mean of its diagonal to the
    /// diagonal; ten times more each time that it is not positive definite. Columns come in descending order of the diagonal if `act_order`.
    ///
    /// `None` if the matrix is zero, not finite, or beyond all damping.
    ///
    /// # Panics
    /// If `hessian` is not square.
    pub fn new(hessian: &[f32], columns: usize, damp: f64, act_order: bool) -> Option<Self> {
        assert_eq!(hessian.len(), columns * columns);
        let mean = (0..columns).map(|i| f64::from(hessian[i * columns + i])).sum::<f64>() / columns as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return None;
        }
        let mut order: Vec<u32> = (0..columns as u32).collect();
        if act_order {
            let diagonal = |&i: &u32| hessian[i as usize * columns + i as usize];
            order.sort_by(|a, b| diagonal(b).total_cmp(&diagonal(a)));
        }
        let mut damping = Damping { share: damp, retries: 0 };
        let factor = loop {
            if let Some(factor) = factored(hessian, columns, &order, damping.share * mean) {
                break factor;
            }
            damping = Damping { share: (damping.share * 10.0).max(1e-6), retries: damping.retries + 1 };
            if damping.share > MOST_DAMPING {
                return None;
            }
        };
        let added = (damping.share * mean) as f32;
        let feedback = feedback(&factor, columns);
        let pivot = |k: usize| factor[(columns - 1 - k) * (columns + 1)];
        let pivots = (0..columns).map(|k| (pivot(k) * pivot(k)) as f32).collect();
        drop(factor);
        let hessian = Slabs::new(columns, |i, j| hessian[i * columns + j] + if i == j { added } else { 0.0 });
        Some(Self { columns, hessian, order, feedback, pivots, lost: None, damping })
    }

    /// [`Self::new`] of the second moment of inputs that noise is added to, the target still being the output without noise (GPTAQ, for a noise that is
    /// known by its power). `share` of what the weights would shrink by is made up for; 0 leaves them as they are.
    ///
    /// # Panics
    /// As [`Self::new`], and if noise and `hessian` differ in columns.
    pub fn with_noise(
        mut hessian: Vec<f32>,
        noise: &ActivationNoise,
        share: f32,
        damp: f64,
        act_order: bool,
    ) -> Option<Self> {
        noise.add_to(&mut hessian);
        let columns = noise.power.len();
        let lost = noise.lost().iter().map(|lost| lost * share).collect();
        Some(Self { lost: Some(lost), ..Self::new(&hessian, columns, damp, act_order)? })
    }

    /// Whether noise of the inputs is made up for.
    pub fn has_noise(&self) -> bool {
        self.lost.is_some()
    }

    /// What noise takes from each column, times the share that is made up for.
    pub(super) fn lost(&self) -> Option<&[f32]> {
        self.lost.as_deref()
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What was added to the diagonal.
    pub fn damping(&self) -> Damping {
        self.damping
    }

    /// The mean square of what each column is multiplied with: the diagonal of H, damping included.
    pub fn importance(&self) -> Vec<f32> {
        (0..self.columns).map(|i| self.hessian.at(i, i)).collect()
    }

    /// The columns in the order in which feedback rounds them.
    pub(super) fn order(&self) -> &[u32] {
        &self.order
    }

    /// H, damping included.
    pub(super) fn hessian(&self) -> &Slabs {
        &self.hessian
    }

    /// Solves v H = `rows` in place: values column after column, for each row.
    ///
    /// With U the feedback plus the identity and P the pivots, both by position, H = U P Uᵀ.
    pub(super) fn solve(&self, rows: &mut [Lane]) {
        let mut values: Vec<Lane> = self.order.iter().map(|&column| rows[column as usize]).collect();
        for at in (0..self.columns).step_by(TOGETHER).rev() {
            let factors = self.feedback.slab(at);
            for k in (0..TOGETHER).rev() {
                let value = values[at + k];
                values[..at + k].iter_mut().zip(factors).for_each(|(sums, f)| add_scaled(sums, -f[k], &value));
            }
        }
        for (value, pivot) in values.iter_mut().zip(&self.pivots) {
            for value in value {
                *value /= pivot;
            }
        }
        for at in (0..self.columns).step_by(TOGETHER) {
            let factors = self.feedback.slab(at);
            let mut sums = [[0.0; LANES]; TOGETHER];
            add_products(&mut sums, &factors[..at], &values[..at]);
            for k in 0..TOGETHER {
                for (earlier, value) in values[at..at + k].iter().enumerate() {
                    add_scaled(&mut sums[k], factors[at + earlier][k], value);
                }
                add_scaled(&mut values[at + k], -1.0, &sums[k]);
            }
        }
        self.order.iter().zip(values).for_each(|(&column, value)| rows[column as usize] = value);
    }

    /// What the error at a position (row) adds to the target at a later position (column); positions are those in the order.
    pub(super) fn feedback(&self) -> &Slabs {
        &self.feedback
    }
}

/// L with L·Lᵀ = H + `added`, rows and columns in the reverse of `order`.
fn factored(hessian: &[f32], columns: usize, order: &[u32], added: f64) -> Option<Vec<f64>> {
    let mut a = vec![0.0; columns * columns];
    a.par_chunks_exact_mut(columns).enumerate().for_each(|(i, row)| {
        let from = &hessian[order[columns - 1 - i] as usize * columns..][..columns];
        row[..=i].iter_mut().zip(order.iter().rev()).for_each(|(value, &j)| *value = f64::from(from[j as usize]));
        row[i] += added;
    });
    cholesky(&mut a, columns).ok()?;
    Some(a)
}

/// With R = the factor turned round (upper, H = R·Rᵀ), eᵀHe = Σ_k R_kk² (e_k + Σ_{i<k} e_i R_ik / R_kk)²: the quotients, for i < k.
fn feedback(factor: &[f64], columns: usize) -> Slabs {
    let last = columns - 1;
    let diagonal: Vec<f64> = (0..columns).map(|i| factor[i * columns + i]).collect();
    Slabs::new(
        columns,
        |i, k| {
            if i < k { (factor[(last - i) * columns + last - k] / diagonal[last - k]) as f32 } else { 0.0 }
        },
    )
}
