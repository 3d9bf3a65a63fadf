//! What calibration knows: sums per input channel of each weight, rows kept as samples, and which weights share an input.
//! Statistics of two texts add up; those of parts of one run do so exactly while they are [`super::StatisticsPart`]s.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::ModelError;

/// Input rows kept as they were, to measure output errors on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SampleRows {
    /// The length of a row.
    pub columns: usize,
    /// The rows, one after the other.
    pub data: Vec<f32>,
    /// Which matrix (expert) multiplied each row.
    pub matrix: Vec<u32>,
}

impl SampleRows {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.matrix.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.matrix.is_empty()
    }

    /// The rows with the index of the matrix that multiplies each.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[f32])> {
        self.matrix.iter().copied().zip(self.data.chunks_exact(self.columns.max(1)))
    }

    pub(super) fn push(&mut self, matrix: u32, row: &[f32]) {
        self.matrix.push(matrix);
        self.data.extend_from_slice(row);
    }
}

/// Sums over the inputs of one weight tensor, for each matrix (expert) apart: index `matrix * columns + channel`.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelStats {
    /// Experts, or 1.
    pub matrices: usize,
    /// Input channels.
    pub columns: usize,
    /// Rows seen by each matrix.
    pub counts: Vec<u64>,
    /// max |x|.
    pub abs_max: Vec<f32>,
    /// min x; infinite where the matrix saw no row.
    pub min: Vec<f32>,
    /// max x; minus infinite where the matrix saw no row.
    pub max: Vec<f32>,
    /// Σ x.
    pub sum: Vec<f64>,
    /// Σ |x|.
    pub sum_abs: Vec<f64>,
    /// Σ x².
    pub sum_sq: Vec<f64>,
    /// Whether `abs_max`, `sum` and `sum_abs` were measured; a file of llama-imatrix has only Σ x², the others are zero then.
    pub complete: bool,
    /// Whether `min` and `max` were measured; files of other tools and of older versions lack them.
    pub ranged: bool,
    /// Sample rows, shared with the weights that have the same input.
    pub rows: Option<Arc<SampleRows>>,
}

impl ChannelStats {
    /// Sums over no rows.
    pub fn new(matrices: usize, columns: usize) -> Self {
        let len = matrices * columns;
        Self {
            matrices,
            columns,
            counts: vec![0; matrices],
            abs_max: vec![0.0; len],
            min: vec![f32::INFINITY; len],
            max: vec![f32::NEG_INFINITY; len],
            sum: vec![0.0; len],
            sum_abs: vec![0.0; len],
            sum_sq: vec![0.0; len],
            complete: true,
            ranged: true,
            rows: None,
        }
    }

    /// Rows seen by all matrices together.
    pub fn rows_seen(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The mean of x² in channel `j` over the rows of all matrices; 1 where no row was seen, as in llama.cpp.
    pub fn mean_sq(&self, j: usize) -> f64 {
        self.pooled(&self.sum_sq, j).unwrap_or(1.0)
    }

    /// The mean of |x| in channel `j` over the rows of all matrices; 1 where no row was seen.
    pub fn mean_abs(&self, j: usize) -> f64 {
        self.pooled(&self.sum_abs, j).unwrap_or(1.0)
    }

    /// The mean of x in channel `j` over the rows of all matrices; 0 where no row was seen.
    pub fn mean(&self, j: usize) -> f64 {
        self.pooled(&self.sum, j).unwrap_or(0.0)
    }

    /// max |x| of channel `j` over the rows of all matrices.
    pub fn max_abs(&self, j: usize) -> f32 {
        (0..self.matrices).map(|m| self.abs_max[m * self.columns + j]).fold(0.0, f32::max)
    }

    /// min x and max x of channel `j` over the rows of all matrices; none where no row was seen or they were not measured.
    pub fn range(&self, j: usize) -> Option<(f32, f32)> {
        if !self.ranged || self.rows_seen() == 0 {
            return None;
        }
        let over = |values: &[f32], start: f32, pick: fn(f32, f32) -> f32| {
            (0..self.matrices).map(|m| values[m * self.columns + j]).fold(start, pick)
        };
        Some((over(&self.min, f32::INFINITY, f32::min), over(&self.max, f32::NEG_INFINITY, f32::max)))
    }

    /// The mean of x² in each channel of one matrix, as an encoder takes it; ones where the matrix saw no row.
    pub fn importance(&self, matrix: usize) -> Vec<f32> {
        let count = self.counts[matrix];
        let sums = &self.sum_sq[matrix * self.columns..][..self.columns];
        sums.iter().map(|&sum| if count == 0 { 1.0 } else { (sum / count as f64) as f32 }).collect()
    }

    fn pooled(&self, sums: &[f64], j: usize) -> Option<f64> {
        let count = self.rows_seen();
        let sum: f64 = (0..self.matrices).map(|m| sums[m * self.columns + j]).sum();
        (count > 0).then(|| sum / count as f64)
    }

    /// Adds the sums of a further part of the text.
    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.abs_max.iter_mut().zip(&other.abs_max).for_each(|(a, b)| *a = a.max(*b));
        self.min.iter_mut().zip(&other.min).for_each(|(a, b)| *a = a.min(*b));
        self.max.iter_mut().zip(&other.max).for_each(|(a, b)| *a = a.max(*b));
        for (mine, theirs) in
            [(&mut self.sum, &other.sum), (&mut self.sum_abs, &other.sum_abs), (&mut self.sum_sq, &other.sum_sq)]
        {
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
        self.complete &= other.complete;
        self.ranged &= other.ranged;
        self.rows = match (self.rows.take(), &other.rows) {
            (Some(a), Some(b)) => Some(Arc::new(joined(&a, b))),
            (a, b) => a.or_else(|| b.clone()),
        };
    }
}

fn joined(a: &SampleRows, b: &SampleRows) -> SampleRows {
    let mut all = a.clone();
    all.data.extend_from_slice(&b.data);
    all.matrix.extend_from_slice(&b.matrix);
    all
}

/// What a calibration run measured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statistics {
    /// By weight tensor.
    pub entries: BTreeMap<String, ChannelStats>,
    /// Weights that the graph fed with the very same input, each group in graph order.
    pub groups: Vec<Vec<String>>,
    /// Chunks of text.
    pub chunk_count: u32,
    /// Tokens of a chunk.
    pub chunk_size: u32,
    /// The calibration texts.
    pub datasets: Vec<String>,
    /// Which model it was ([`super::store::fingerprint`]); files of other tools do not say.
    pub fingerprint: Option<String>,
    /// Whether the sample rows come from text that the sums have not seen.
    pub rows_held_out: bool,
    /// Further facts for the record, as key and value.
    pub notes: BTreeMap<String, String>,
}

impl Statistics {
    /// Adds statistics of a further part of the text: the result is that of one run over both.
    ///
    /// # Errors
    /// [`ModelError::StatisticsDiffer`] if the two are of different models or settings.
    pub fn merge(&mut self, other: &Self) -> Result<(), ModelError> {
        let differ =
            |what: &str, a: String, b: String| ModelError::StatisticsDiffer { what: what.into(), first: a, second: b };
        if self.chunk_size != other.chunk_size {
            return Err(differ("tokens per chunk", self.chunk_size.to_string(), other.chunk_size.to_string()));
        }
        if let (Some(a), Some(b)) = (&self.fingerprint, &other.fingerprint)
            && a != b
        {
            return Err(differ("models", a.clone(), b.clone()));
        }
        for (name, theirs) in &other.entries {
            let Some(mine) = self.entries.get_mut(name) else {
                self.entries.insert(name.clone(), theirs.clone());
                continue;
            };
            let size = |s: &ChannelStats| format!("{} x {}", s.matrices, s.columns);
            if (mine.matrices, mine.columns) != (theirs.matrices, theirs.columns) {
                return Err(differ(&format!("shapes of `{name}`"), size(mine), size(theirs)));
            }
            mine.merge(theirs);
        }
        self.chunk_count += other.chunk_count;
        self.datasets.extend(other.datasets.iter().filter(|d| !self.datasets.contains(d)).cloned().collect::<Vec<_>>());
        self.rows_held_out &= other.rows_held_out;
        for group in &other.groups {
            if !self.groups.contains(group) {
                self.groups.push(group.clone());
            }
        }
        Ok(())
    }

    /// The weights that share the input of `name`, itself included; empty if the graph was not seen.
    pub fn group_of(&self, name: &str) -> &[String] {
        self.groups.iter().find(|group| group.iter().any(|member| member == name)).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(values: [f64; 4], counts: [u64; 2]) -> ChannelStats {
        let mut stats = ChannelStats::new(2, 2);
        stats.counts = counts.to_vec();
        stats.sum_sq = values.to_vec();
        stats
    }

    #[test]
    fn experts_are_pooled_by_their_rows() {
        let s = stats([2.0, 4.0, 6.0, 8.0], [2, 6]);
        assert_eq!([s.mean_sq(0), s.mean_sq(1)], [1.0, 1.5]);
        assert_eq!(s.importance(0), [1.0, 2.0]);
        assert_eq!(stats([0.0; 4], [0, 0]).mean_sq(0), 1.0);
        assert_eq!(stats([0.0; 4], [0, 3]).importance(0), [1.0, 1.0]);
    }

    #[test]
    fn ranges_are_those_of_the_matrices_that_saw_rows() {
        let mut s = stats([1.0; 4], [3, 0]);
        (s.min[..2]).copy_from_slice(&[0.5, -2.0]);
        (s.max[..2]).copy_from_slice(&[0.75, 1.0]);
        assert_eq!((s.range(0), s.range(1)), (Some((0.5, 0.75)), Some((-2.0, 1.0))));
        let mut more = stats([1.0; 4], [0, 1]);
        (more.min[2], more.max[2]) = (-1.0, 0.6);
        (more.min[3], more.max[3]) = (0.0, 4.0);
        s.merge(&more);
        assert_eq!((s.range(0), s.range(1)), (Some((-1.0, 0.75)), Some((-2.0, 4.0))));
        assert_eq!(ChannelStats::new(1, 1).range(0), None, "no rows");
        s.merge(&ChannelStats { ranged: false, ..more });
        assert_eq!(s.range(0), None, "not measured");
    }

    #[test]
    fn merging_refuses_other_shapes_and_adds_what_is_new() {
        let one = |name: &str, s: ChannelStats| Statistics {
            entries: [(name.to_owned(), s)].into(),
            chunk_count: 1,
            ..Default::default()
        };
        let mut all = one("a", stats([1.0; 4], [1, 1]));
        all.merge(&one("a", stats([2.0; 4], [1, 0]))).unwrap();
        all.merge(&one("b", ChannelStats::new(1, 3))).unwrap();
        assert_eq!(all.entries["a"].sum_sq, [3.0; 4]);
        assert_eq!(all.entries["a"].counts, [2, 1]);
        assert_eq!((all.entries.len(), all.chunk_count), (2, 3));
        assert!(all.merge(&one("a", ChannelStats::new(1, 2))).is_err());
    }
}
