//! Cuts a model into runs of rows that threads take in turn, and puts what they report back in order.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::plan::Conversion;
use crate::error::{Error, Result};
use crate::math::products::LANES;
use crate::util::progress::{Progress, Unit};

/// Source values a run of rows aims at: large enough to hide the cost of a write, small enough for the cache and for many threads.
const RUN_ELEMENTS: u64 = 1 << 18;

/// A run of rows of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowUnit {
    /// Index of the tensor.
    pub(super) tensor: usize,
    /// First row, counted over all matrices of the tensor.
    pub(super) first: u64,
    /// Number of rows.
    pub(super) rows: u64,
}

/// Cuts tensors of (matrices, rows of each, columns) into runs of whole tiles' rows of one matrix, as many as are rounded together; the last run of a
/// matrix may be shorter.
pub(super) fn cut(shapes: impl IntoIterator<Item = (u64, u64, u64)>) -> Vec<RowUnit> {
    let runs = |(tensor, (matrices, rows, columns)): (usize, (u64, u64, u64))| {
        let step = (RUN_ELEMENTS / columns.max(1)).max(1).next_multiple_of(LANES as u64);
        let of = move |matrix: u64| (0..rows).step_by(step as usize).map(move |first| (matrix * rows + first, first));
        let unit = move |(first, within): (u64, u64)| RowUnit { tensor, first, rows: step.min(rows - within) };
        (0..matrices).flat_map(of).map(unit)
    };
    shapes.into_iter().enumerate().flat_map(runs).collect()
}

/// Bytes of memory that carrying out `plan` takes beside the mapped source, about: each thread's run of rows in f32, its scratch and its bytes.
pub fn working_memory(plan: &Conversion) -> u64 {
    let row = plan.tensors.iter().map(|t| t.dims.first().copied().unwrap_or(1)).max().unwrap_or(1);
    let run = RUN_ELEMENTS.max(row * LANES as u64);
    let transforms: u64 =
        plan.tensors.iter().map(|t| t.dims.iter().take(2).sum::<u64>() * size_of::<f32>() as u64).sum();
    rayon::current_num_threads() as u64 * run * 4 * size_of::<f32>() as u64 + 2 * transforms
}

/// Runs `work` on every unit, on all threads; the results come back in the order of the units. Progress counts source bytes, as `bytes` says.
///
/// # Errors
/// As [`run_some`].
pub(super) fn run_all<T: Send>(
    units: &[RowUnit],
    label: &str,
    progress: &dyn Progress,
    bytes: impl Fn(&RowUnit) -> u64 + Sync,
    work: impl Fn(&RowUnit) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    progress.begin(label, units.iter().map(&bytes).sum(), Unit::Bytes);
    let results = run_some(units, progress, bytes, work);
    progress.end();
    results
}

/// As [`run_all`], within a phase that has begun.
///
/// # Errors
/// The first error in the order of the units, or [`Error::Interrupted`].
pub(super) fn run_some<T: Send>(
    units: &[RowUnit],
    progress: &dyn Progress,
    bytes: impl Fn(&RowUnit) -> u64 + Sync,
    work: impl Fn(&RowUnit) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let one = |unit: &RowUnit| {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        let result = work(unit)?;
        progress.advance(bytes(unit));
        Ok(result)
    };
    in_order(units, one)
}

/// Runs `work` on every item, on all threads; results in the order of the items. Of several errors the first in that order is told, so that
/// the message does not depend on the threads; items after a known error are left out.
pub(super) fn in_order<I: Sync, T: Send>(items: &[I], work: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
    let failed = AtomicUsize::new(usize::MAX);
    let one = |(index, item): (usize, &I)| {
        if index > failed.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        work(item).inspect_err(|_| _ = failed.fetch_min(index, Ordering::Relaxed))
    };
    let results: Vec<Result<T>> = items.par_iter().enumerate().map(one).collect();
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::progress::NoProgress;

    #[test]
    fn runs_cover_every_row_once_and_start_at_tiles() {
        let units = cut([(1, 4096, 768), (1, 1, 576), (3, 8, 1 << 20)]);
        for (tensor, rows) in [(0, 4096), (1, 1), (2, 24)] {
            let mut next = 0;
            for unit in units.iter().filter(|u| u.tensor == tensor) {
                assert_eq!(unit.first, next);
                assert_eq!(unit.first % 8, 0);
                next += unit.rows;
            }
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn the_first_error_is_told() {
        let items: Vec<u64> = (0..1000).collect();
        let odd = |&n: &u64| {
            if n % 300 == 299 { Err(Error::io("x", "read")(std::io::Error::other(n.to_string()))) } else { Ok(n) }
        };
        for _ in 0..20 {
            assert_eq!(in_order(&items, odd).unwrap_err().to_string(), "x: cannot read: 299");
        }
    }

    #[test]
    fn results_keep_their_order() {
        let units = cut([(1, 100_000, 256)]);
        let firsts = run_all(&units, "test", &NoProgress, |_| 1, |u| Ok(u.first)).unwrap();
        assert_eq!(firsts, units.iter().map(|u| u.first).collect::<Vec<_>>());
    }
}
