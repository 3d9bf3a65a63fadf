//! The second moment of an input: H = Σ x xᵀ over its rows, in the basis in which the model has it.
//!
//! Only the part on and above the diagonal is summed and kept. f32 within a call and across calls; every element is a sum in row order, so
//! neither threads nor processors change a bit.

use rayon::prelude::*;

use crate::math::products::{LANES, Lane, TOGETHER, add_products};

/// A tile of sums: [`TOGETHER`] rows by [`LANES`] columns of the matrix.
type Tile = [Lane; TOGETHER];

/// The sum of x xᵀ over the rows of an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Hessian {
    columns: usize,
    rows: u64,
    /// For each run of four rows the tiles from the one that holds the diagonal on.
    tiles: Vec<Vec<Tile>>,
}

impl Hessian {
    /// The sum over no rows, for inputs of `columns` channels.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 32.
    pub fn new(columns: usize) -> Self {
        assert!(columns.is_multiple_of(LANES), "{columns} columns are no multiple of {LANES}");
        let count = |run: usize| columns / LANES - run * TOGETHER / LANES;
        let tiles = (0..columns / TOGETHER).map(|run| vec![[[0.0; LANES]; TOGETHER]; count(run)]).collect();
        Self { columns, rows: 0, tiles }
    }

    /// Channels.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows summed.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds the rows of `data` that start at `offsets`.
    ///
    /// # Panics
    /// If a row does not lie inside `data`.
    pub fn add(&mut self, data: &[f32], offsets: &[usize]) {
        self.rows += offsets.len() as u64;
        let factors: Vec<Vec<[f32; TOGETHER]>> = cut(data, offsets, self.columns);
        let values: Vec<Vec<Lane>> = cut(data, offsets, self.columns);
        self.tiles.par_iter_mut().zip(&factors).enumerate().for_each(|(run, (tiles, factors))| {
            for (tile, values) in tiles.iter_mut().zip(&values[run * TOGETHER / LANES..]) {
                add_products(tile, factors, values);
            }
        });
    }

    /// Adds the sums of further rows.
    ///
    /// # Panics
    /// If the number of channels differs.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.columns, other.columns);
        self.rows += other.rows;
        let all = self.tiles.iter_mut().flatten().flatten().flatten();
        all.zip(other.tiles.iter().flatten().flatten().flatten()).for_each(|(a, b)| *a += b);
    }

    /// The whole matrix, row after row, divided by the number of rows.
    pub fn mean(&self) -> Vec<f32> {
        let (columns, scale) = (self.columns, 1.0 / self.rows.max(1) as f32);
        let mut full = vec![0.0; columns * columns];
        full.par_chunks_exact_mut(columns).enumerate().for_each(|(i, row)| {
            for (j, value) in row.iter_mut().enumerate() {
                *value = self.at(i.min(j), i.max(j)) * scale;
            }
        });
        full
    }

    /// One element on or above the diagonal.
    fn at(&self, row: usize, column: usize) -> f32 {
        let run = row / TOGETHER;
        self.tiles[run][column / LANES - run * TOGETHER / LANES][row % TOGETHER][column % LANES]
    }
}

/// Cuts rows into pieces of `N` columns; the pieces of the same columns lie together.
fn cut<const N: usize>(data: &[f32], offsets: &[usize], columns: usize) -> Vec<Vec<[f32; N]>> {
    let piece = |at: usize, offset: &usize| std::array::from_fn(|k| data[offset + at + k]);
    (0..columns).into_par_iter().step_by(N).map(|at| offsets.iter().map(|offset| piece(at, offset)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize, columns: usize) -> Vec<f32> {
        (0..count * columns).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 300.0).collect()
    }

    #[test]
    fn it_is_the_mean_of_outer_products() {
        let (columns, count) = (96, 50);
        let data = rows(count, columns);
        let offsets: Vec<usize> = (0..count).map(|t| t * columns).collect();
        let (mut whole, mut first, mut second) = (Hessian::new(columns), Hessian::new(columns), Hessian::new(columns));
        whole.add(&data, &offsets);
        first.add(&data, &offsets[..20]);
        second.add(&data, &offsets[20..]);
        first.merge(&second);
        assert_eq!((whole.rows(), first.rows()), (50, 50));
        let (mean, merged) = (whole.mean(), first.mean());
        for i in 0..columns {
            for j in 0..columns {
                let product = |t: &usize| f64::from(data[t + i]) * f64::from(data[t + j]);
                let naive = offsets.iter().map(product).sum::<f64>() / count as f64;
                assert!((f64::from(mean[i * columns + j]) - naive).abs() < 1e-5, "{i}, {j}");
                assert!((mean[i * columns + j] - merged[i * columns + j]).abs() < 1e-5);
                assert_eq!(mean[i * columns + j], mean[j * columns + i]);
            }
        }
    }
}
