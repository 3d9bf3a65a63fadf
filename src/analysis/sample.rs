//! What is looked at: which sample rows, which output rows, which experts. Evenly spread, the same for every run.

use std::collections::BTreeMap;

use crate::calib::{SampleRows, Statistics};
use crate::gguf::TensorInfo;
use crate::tcq::TILE_ROWS;

/// The rows of one matrix that are looked at, and what it multiplies.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The matrix (expert).
    pub matrix: u32,
    /// First rows of stripes of eight, counted over all matrices of the tensor.
    pub stripes: Vec<u64>,
    /// Sample rows, one after the other; empty if there are none.
    pub x: Vec<f32>,
}

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Output rows of each matrix, at most.
    pub output_rows: usize,
    /// Sample rows of each matrix, at most.
    pub sample_rows: usize,
    /// Experts of each stack, at most.
    pub experts: usize,
}

/// At most `limit` sample rows of a tensor (of one matrix if given), evenly spread.
pub fn rows_of(statistics: Option<&Statistics>, tensor: &str, matrix: Option<u32>, limit: usize) -> Vec<f32> {
    let Some(rows) = sample_rows(statistics, tensor) else { return Vec::new() };
    let of: Vec<&[f32]> =
        rows.iter().filter(|(owner, _)| matrix.is_none_or(|matrix| *owner == matrix)).map(|(_, row)| row).collect();
    let count = of.len().min(limit);
    (0..count).flat_map(|i| of[i * of.len() / count]).copied().collect()
}

/// The sample rows of a tensor, if there are any.
fn sample_rows<'a>(statistics: Option<&'a Statistics>, tensor: &str) -> Option<&'a SampleRows> {
    statistics?.entries.get(tensor)?.rows.as_deref().filter(|rows| !rows.is_empty())
}

/// The matrices of a tensor that are looked at: its only one, or the experts with most sample rows; the first ones without.
pub fn matrices(statistics: Option<&Statistics>, tensor: &TensorInfo, limit: usize) -> Vec<u32> {
    let total = tensor.matrices() as u32;
    let mut seen: BTreeMap<u32, usize> = (0..total).map(|matrix| (matrix, 0)).collect();
    for &matrix in sample_rows(statistics, &tensor.name).map_or(&[][..], |rows| &rows.matrix) {
        seen.entry(matrix).and_modify(|count| *count += 1);
    }
    let mut ranked: Vec<(u32, usize)> = seen.into_iter().collect();
    ranked.sort_by_key(|&(matrix, count)| (std::cmp::Reverse(count), matrix));
    let mut chosen: Vec<u32> = ranked.into_iter().take(limit).map(|(matrix, _)| matrix).collect();
    chosen.sort_unstable();
    chosen
}

/// The first rows of at most `output_rows` / 8 stripes of eight, evenly spread over the `rows` of a matrix.
pub fn stripes(rows: u64, output_rows: usize) -> impl Iterator<Item = u64> {
    let all = rows / TILE_ROWS as u64;
    let count = all.min((output_rows / TILE_ROWS).max(1) as u64);
    (0..count).map(move |i| i * all / count * TILE_ROWS as u64)
}

/// What is looked at of a tensor.
pub fn parts(statistics: Option<&Statistics>, tensor: &TensorInfo, extent: Extent) -> Vec<Part> {
    let rows = tensor.rows() / tensor.matrices().max(1);
    let part = |matrix: u32| Part {
        matrix,
        stripes: stripes(rows, extent.output_rows).map(|row| u64::from(matrix) * rows + row).collect(),
        x: rows_of(statistics, &tensor.name, (tensor.matrices() > 1).then_some(matrix), extent.sample_rows),
    };
    matrices(statistics, tensor, extent.experts).into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_are_spread_and_whole() {
        assert_eq!(stripes(8, 64).collect::<Vec<_>>(), [0]);
        assert_eq!(stripes(64, 64).count(), 8);
        assert_eq!(stripes(160, 32).collect::<Vec<_>>(), [0, 40, 80, 120]);
        assert_eq!(stripes(160, 1).collect::<Vec<_>>(), [0], "one stripe at least");
        assert_eq!(stripes(7, 64).count(), 0);
    }
}
