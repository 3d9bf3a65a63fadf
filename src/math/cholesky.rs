//! The factor of a symmetric positive definite matrix that error feedback needs, in f64, the same bits on every machine and any number of threads.
//!
//! Blocked and parallel over rows, but no pivoting and no general solver. Every element is a fixed sequence of products and differences, which the
//! compiler may vectorise but not reorder: a library's kernels give other bits on other processors, and rounded weights would follow them.

use rayon::prelude::*;

/// Columns that are factored before the rest is updated.
const BLOCK: usize = 64;
/// Columns of an update that stay in registers.
const TILE: usize = 32;

/// Why a matrix has no factor: what remains of this diagonal element is not positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotPositive {
    /// The row and column.
    pub index: usize,
}

/// Replaces the lower triangle of `a` (`n` x `n`, row after row, only the lower triangle is read) by L with a = L·Lᵀ; above the diagonal nothing changes.
///
/// # Errors
/// [`NotPositive`]; the contents are unspecified then.
///
/// # Panics
/// If `a` has not `n * n` elements.
pub fn cholesky(a: &mut [f64], n: usize) -> Result<(), NotPositive> {
    assert_eq!(a.len(), n * n, "a square matrix of {n} rows");
    let mut panel = Vec::new();
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        let (above, below) = a.split_at_mut((first + width) * n);
        factor_diagonal(&mut above[first * n..], n, first, width)?;
        let diagonal = &above[first * n..];
        below.par_chunks_exact_mut(n).for_each(|row| solve_row(row, diagonal, n, first, width));
        transpose_panel(below, n, first, width, &mut panel);
        let (rest, panel) = (n - first - width, &panel);
        below.par_chunks_exact_mut(n).enumerate().for_each(|(index, row)| {
            let (head, tail) = row.split_at_mut(first + width);
            update_row(&mut tail[..=index], &head[first..], panel, rest);
        });
    }
    Ok(())
}

/// Factors the block on the diagonal; `rows` begins with its first row.
fn factor_diagonal(rows: &mut [f64], n: usize, first: usize, width: usize) -> Result<(), NotPositive> {
    for j in 0..width {
        let (done, rest) = rows.split_at_mut(j * n);
        let row = &mut rest[first..first + width];
        for k in 0..j {
            let other = &done[k * n + first..][..=k];
            let sum: f64 = other[..k].iter().zip(row.iter()).fold(0.0, |sum, (a, b)| sum + a * b);
            row[k] = (row[k] - sum) / other[k];
        }
        let left = row[..j].iter().fold(row[j], |left, value| left - value * value);
        if left <= 0.0 || !left.is_finite() {
            return Err(NotPositive { index: first + j });
        }
        row[j] = left.sqrt();
    }
    Ok(())
}

/// Solves for the part of a row below the block on the diagonal.
fn solve_row(row: &mut [f64], diagonal: &[f64], n: usize, first: usize, width: usize) {
    let row = &mut row[first..first + width];
    for k in 0..width {
        let other = &diagonal[k * n + first..][..=k];
        let sum: f64 = other[..k].iter().zip(row.iter()).fold(0.0, |sum, (a, b)| sum + a * b);
        row[k] = (row[k] - sum) / other[k];
    }
}

/// Copies the columns that were just solved, so that each lies in one piece: `panel[k * rest + row]`.
fn transpose_panel(below: &[f64], n: usize, first: usize, width: usize, panel: &mut Vec<f64>) {
    let rest = below.len() / n;
    panel.clear();
    panel.resize(width * rest, 0.0);
    for (index, row) in below.chunks_exact(n).enumerate() {
        for (k, value) in row[first..first + width].iter().enumerate() {
            panel[k * rest + index] = *value;
        }
    }
}

/// Subtracts from the rest of a row its products with the rows above it: `row[j] -= Σ_k own[k] * panel[k][j]`.
fn update_row(row: &mut [f64], own: &[f64], panel: &[f64], rest: usize) {
    let (tiles, tail) = row.as_chunks_mut::<TILE>();
    for (tile, values) in tiles.iter_mut().enumerate() {
        let mut local = *values; // stays in registers
        for (k, &factor) in own.iter().enumerate() {
            let other: &[f64; TILE] = panel[k * rest + tile * TILE..].first_chunk().unwrap_or(&[0.0; TILE]);
            for (value, other) in local.iter_mut().zip(other) {
                *value -= factor * other;
            }
        }
        *values = local;
    }
    let at = tiles.len() * TILE;
    for (k, &factor) in own.iter().enumerate() {
        tail.iter_mut().zip(&panel[k * rest + at..]).for_each(|(value, other)| *value -= factor * other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix: the products of seeded rows, and something on the diagonal.
    fn sample(n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        let x: Vec<f64> = (0..2 * n * n).map(|_| next()).collect();
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                a[i * n + j] = (0..2 * n).map(|t| x[t * n + i] * x[t * n + j]).sum::<f64>();
            }
            a[i * n + i] += 0.1;
        }
        a
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix() {
        for n in [1, 2, 63, 64, 65, 130, 200] {
            let a = sample(n, n as u64);
            let mut l = a.clone();
            cholesky(&mut l, n).unwrap();
            for i in 0..n {
                for j in 0..=i {
                    let product: f64 = (0..=j).map(|k| l[i * n + k] * l[j * n + k]).sum();
                    assert!((product - a[i * n + j]).abs() < 1e-9 * a[i * n + i].max(1.0), "{n}: {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_positive_is_named() {
        let mut a = sample(100, 3);
        a[70 * 100 + 70] = -1.0;
        assert_eq!(cholesky(&mut a, 100), Err(NotPositive { index: 70 }));
        assert_eq!(cholesky(&mut [f64::NAN], 1), Err(NotPositive { index: 0 }));
        assert_eq!(cholesky(&mut [], 0), Ok(()));
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let factor = |threads| {
            let mut a = sample(150, 9);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| cholesky(&mut a, 150)).unwrap();
            a
        };
        assert_eq!(factor(1), factor(3));
    }
}
