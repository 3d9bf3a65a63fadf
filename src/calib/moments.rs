//! The sums themselves: min x, max x, max |x|, Σx, Σ|x| and Σx² of each column over a set of rows, at memory speed.
//! f32 within a block of rows, f64 within the rows of a call, integers beyond them: columns are independent and integers associative, so neither the
//! threads nor a division of the calls among machines change a bit.

use rayon::prelude::*;

use super::sums::ChannelSums;
use crate::device::{SUMMED_ROWS, SUMS};
use crate::math::exact_sum::ExactSum;

/// Columns that are summed together: five sums of so many f32 fit the vector registers of AVX-512.
const TILE: usize = 64;

/// Rows summed in f32 before they join the f64 sums: the rounding of positive sums stays below 31 * 2⁻²⁴, about 2e-6.
const BLOCK: usize = SUMMED_ROWS;

/// Values (rows times columns) below which waking other threads does not pay.
const PARALLEL: usize = 1 << 16;

/// The sums of up to [`TILE`] columns from `first` on.
struct Tile<'s> {
    first: usize,
    abs_max: &'s mut [f32],
    min: &'s mut [f32],
    max: &'s mut [f32],
    sum: &'s mut [ExactSum],
    sum_abs: &'s mut [ExactSum],
    sum_sq: &'s mut [ExactSum],
}

/// Rows to add to sums.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// Those of some data that start at these offsets.
    Data(&'a [f32], &'a [usize]),
    /// So many, of which a device has made the sums of every block: [`crate::device::SumRows::channel_sums`].
    Summed(usize, &'a [f32]),
}

impl Rows<'_> {
    fn len(self) -> usize {
        match self {
            Rows::Data(_, offsets) => offsets.len(),
            Rows::Summed(rows, _) => rows,
        }
    }

    /// The sums of a block of rows in `width` columns from `first` on.
    fn block(self, block: usize, columns: usize, (first, width): (usize, usize)) -> Sums {
        let mut sums = Sums::default();
        match self {
            Rows::Data(data, offsets) => {
                for &offset in &offsets[block * BLOCK..offsets.len().min((block + 1) * BLOCK)] {
                    let row = &data[offset + first..][..width];
                    // The constant length of a full tile is what lets the loop become straight vector code.
                    match row.first_chunk::<TILE>() {
                        Some(row) => sums.add(row),
                        None => sums.add(row),
                    }
                }
            }
            Rows::Summed(_, all) => {
                let own = &all[block * SUMS * columns..][..SUMS * columns];
                let Sums { min, max, sum, sum_abs, sum_sq } = &mut sums;
                for (of, values) in [min, max, sum, sum_abs, sum_sq].into_iter().zip(own.chunks_exact(columns)) {
                    of[..width].copy_from_slice(&values[first..first + width]);
                }
            }
        }
        sums
    }
}

/// Adds rows to the sums of `matrix`; returns the first column whose sums are not finite (an input is NaN or infinite, or beyond 1e9, where its square
/// is more than can be summed).
///
/// # Panics
/// If a row does not lie inside its data.
pub(super) fn accumulate(stats: &mut ChannelSums, matrix: usize, rows: Rows<'_>) -> Option<usize> {
    let columns = stats.columns;
    let range = matrix * columns..(matrix + 1) * columns;
    stats.counts[matrix] += rows.len() as u64;
    let together = if columns * rows.len() < PARALLEL { columns.div_ceil(TILE) } else { 2 };
    stats.abs_max[range.clone()]
        .par_chunks_mut(TILE)
        .zip(stats.min[range.clone()].par_chunks_mut(TILE))
        .zip(stats.max[range.clone()].par_chunks_mut(TILE))
        .zip(stats.sum[range.clone()].par_chunks_mut(TILE))
        .zip(stats.sum_abs[range.clone()].par_chunks_mut(TILE))
        .zip(stats.sum_sq[range].par_chunks_mut(TILE))
        .enumerate()
        .with_min_len(together.max(1))
        .filter_map(|(i, (((((abs_max, min), max), sum), sum_abs), sum_sq))| {
            let mut tile = Tile { first: i * TILE, abs_max, min, max, sum, sum_abs, sum_sq };
            tile.add(rows, columns);
            tile.not_finite()
        })
        .min()
}

/// Adds numbers to the sums of their columns.
fn add(sums: &mut [ExactSum], values: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        sum.add(*value);
    }
}

impl Tile<'_> {
    /// Adds rows.
    fn add(&mut self, rows: Rows<'_>, columns: usize) {
        let width = self.abs_max.len();
        let [mut sum, mut sum_abs, mut sum_sq] = [[0.0f64; TILE]; 3];
        for block in 0..rows.len().div_ceil(BLOCK) {
            let sums = rows.block(block, columns, (self.first, width));
            for j in 0..width {
                self.min[j] = self.min[j].min(sums.min[j]);
                self.max[j] = self.max[j].max(sums.max[j]);
                self.abs_max[j] = self.abs_max[j].max(sums.max[j]).max(-sums.min[j]);
                sum[j] += f64::from(sums.sum[j]);
                sum_abs[j] += f64::from(sums.sum_abs[j]);
                sum_sq[j] += f64::from(sums.sum_sq[j]);
            }
        }
        add(self.sum, &sum);
        add(self.sum_abs, &sum_abs);
        add(self.sum_sq, &sum_sq);
    }

    fn not_finite(&self) -> Option<usize> {
        self.sum_sq.iter().position(|sum| !sum.is_finite()).map(|j| self.first + j)
    }
}

/// f32 sums of a block of rows.
struct Sums {
    min: [f32; TILE],
    max: [f32; TILE],
    sum: [f32; TILE],
    sum_abs: [f32; TILE],
    sum_sq: [f32; TILE],
}

impl Default for Sums {
    fn default() -> Self {
        let (min, max) = ([f32::INFINITY; TILE], [f32::NEG_INFINITY; TILE]);
        Self { min, max, sum: [0.0; TILE], sum_abs: [0.0; TILE], sum_sq: [0.0; TILE] }
    }
}

impl Sums {
    #[inline]
    fn add(&mut self, row: &[f32]) {
        for (j, &x) in row.iter().enumerate().take(TILE) {
            self.min[j] = if x < self.min[j] { x } else { self.min[j] };
            self.max[j] = if x > self.max[j] { x } else { self.max[j] };
            self.sum[j] += x;
            self.sum_abs[j] += x.abs();
            self.sum_sq[j] += x * x;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rounding of f32 sums over a block, relative to the sum of magnitudes.
    const SUM_TOLERANCE: f64 = 2e-6;

    /// The definition, in f64, one value after the other.
    fn naive(stats: &mut ChannelSums, matrix: usize, data: &[f32], offsets: &[usize]) {
        for &offset in offsets {
            stats.counts[matrix] += 1;
            for j in 0..stats.columns {
                let (x, at) = (data[offset + j], matrix * stats.columns + j);
                stats.abs_max[at] = stats.abs_max[at].max(x.abs());
                (stats.min[at], stats.max[at]) = (stats.min[at].min(x), stats.max[at].max(x));
                stats.sum[at].add(f64::from(x));
                stats.sum_abs[at].add(f64::from(x).abs());
                stats.sum_sq[at].add(f64::from(x).powi(2));
            }
        }
    }

    fn close(fast: &[ExactSum], slow: &[ExactSum], magnitude: &[ExactSum]) -> bool {
        let near = |a: f64, b: f64, magnitude: f64| (a - b).abs() <= SUM_TOLERANCE * magnitude;
        fast.iter().zip(slow).zip(magnitude).all(|((a, b), m)| near(a.to_f64(), b.to_f64(), m.to_f64()))
    }

    proptest! {
        #[test]
        fn matches_naive(columns in 1usize..200, rows in 0usize..120, seed in any::<u32>()) {
            let stride = columns + 3;
            let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 1e5 - 80.0;
            let data: Vec<f32> = (0..stride * rows + columns).map(value).collect();
            let offsets: Vec<usize> = (0..rows).map(|r| r * stride).collect();
            let (mut fast, mut slow) = (ChannelSums::new(2, columns), ChannelSums::new(2, columns));
            prop_assert_eq!(accumulate(&mut fast, 1, Rows::Data(&data, &offsets)), None);
            naive(&mut slow, 1, &data, &offsets);
            prop_assert_eq!(&fast.abs_max, &slow.abs_max);
            prop_assert_eq!((&fast.min, &fast.max), (&slow.min, &slow.max));
            prop_assert_eq!(&fast.counts, &slow.counts);
            prop_assert!(close(&fast.sum, &slow.sum, &slow.sum_abs));
            prop_assert!(close(&fast.sum_abs, &slow.sum_abs, &slow.sum_abs));
            prop_assert!(close(&fast.sum_sq, &slow.sum_sq, &slow.sum_sq));
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (columns, rows) = (777, 300);
        let data: Vec<f32> = (0..columns * rows).map(|i| (i as f32).sin() * 3.0).collect();
        let offsets: Vec<usize> = (0..rows).map(|r| r * columns).collect();
        let with = |threads| {
            let mut stats = ChannelSums::new(1, columns);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| accumulate(&mut stats, 0, Rows::Data(&data, &offsets)));
            stats
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn sums_that_a_device_made_of_blocks_give_the_same_bits() {
        let (columns, rows) = (150, 70);
        let data: Vec<f32> = (0..columns * rows).map(|i| (i as f32).sin() * 3.0).collect();
        let offsets: Vec<usize> = (0..rows).map(|r| r * columns).collect();
        let fold = |block: &[f32], j: usize, start: f32, with: fn(f32, f32) -> f32| {
            block.iter().skip(j).step_by(columns).fold(start, |sum, &value| with(sum, value))
        };
        let of_block = |block: &[f32]| -> Vec<f32> {
            let all = |start: f32, with: fn(f32, f32) -> f32| (0..columns).map(move |j| fold(block, j, start, with));
            let extremes = all(f32::INFINITY, f32::min).chain(all(f32::NEG_INFINITY, f32::max));
            let sums = all(0.0, |sum, value| sum + value).chain(all(0.0, |sum, value| sum + value.abs()));
            extremes.chain(sums).chain(all(0.0, |sum, value| sum + value * value)).collect()
        };
        let summed: Vec<f32> = data.chunks(BLOCK * columns).flat_map(of_block).collect();
        let (mut own, mut given) = (ChannelSums::new(1, columns), ChannelSums::new(1, columns));
        accumulate(&mut own, 0, Rows::Data(&data, &offsets));
        accumulate(&mut given, 0, Rows::Summed(rows, &summed));
        assert_eq!(own, given);
    }

    #[test]
    fn the_first_bad_column_is_named() {
        let mut data = vec![1.0; 300];
        data[217] = f32::NAN;
        data[130] = f32::INFINITY;
        assert_eq!(accumulate(&mut ChannelSums::new(1, 300), 0, Rows::Data(&data, &[0])), Some(130));
    }
}
