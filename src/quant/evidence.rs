//! The numbers behind every choice, one per channel of an input group: from calibration statistics, or estimated from the weights.
//!
//! Weights are read once, in blocks, and their pages are given back; sums do not depend on the number of threads.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use super::outcome::Grounds;
use super::permute::Channels;
use crate::calib::{ChannelStats, Statistics};
use crate::error::Result;
use crate::gguf::{Source, TensorInfo};
use crate::model::{Axis, InputGroup, Producer, Span};

/// Reads consecutive rows of a tensor, seen as one matrix, from the given row on, as f32.
pub type ReadRows<'a> = dyn Fn(&TensorInfo, u64, &mut [f32]) -> Result<()> + Sync + 'a;

/// Values of a block of rows.
const BLOCK: u64 = 1 << 18;

/// The weights of a model.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// The model.
    pub source: &'a Source,
    /// How rows are read; `Source::read_rows`, unless the source is quantised itself.
    pub read: &'a ReadRows<'a>,
}

/// What is known about the channels of a group.
pub(super) struct Evidence {
    pub(super) channels: Channels,
    /// E|x|, where it was measured; so was max|x| then.
    pub(super) mean_abs: Option<Vec<f64>>,
    /// max x - min x, where it was measured.
    pub(super) range: Option<Vec<f64>>,
    pub(super) grounds: Grounds,
}

/// Estimates of `E[x²]` by tensor: what each tensor's input is thought to be, before anything was measured.
pub(super) type Estimates = BTreeMap<String, Vec<f64>>;

impl Weights<'_> {
    /// Reads the tensor in blocks of rows, in parallel, and returns what `each` makes of them, in the order of the rows.
    fn blocks<T: Send>(&self, tensor: &TensorInfo, each: impl Fn(u64, &[f32]) -> T + Sync) -> Result<Vec<T>> {
        self.blocks_of(tensor, 0..tensor.rows(), each)
    }

    /// The same for some of its rows; `each` gets the index of a block's first row and its values.
    pub(super) fn blocks_of<T: Send>(
        &self,
        tensor: &TensorInfo,
        rows: Range<u64>,
        each: impl Fn(u64, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let columns = tensor.columns().max(1);
        let step = (BLOCK / columns).max(1);
        let block = |block: u64| {
            let first = rows.start + block * step;
            let mut values = vec![0.0; (step.min(rows.end - first) * columns) as usize];
            (self.read)(tensor, first, &mut values)?;
            Ok(each(first, &values))
        };
        let done = (0..(rows.end - rows.start).div_ceil(step)).into_par_iter().map(block).collect();
        self.source.release(tensor, 0..tensor.bytes as usize);
        done
    }

    /// Σ w² of each column.
    fn column_energy(&self, tensor: &TensorInfo) -> Result<Vec<f64>> {
        let columns = tensor.columns() as usize;
        let parts = self.blocks(tensor, |_, values| {
            let mut sums = vec![0.0f64; columns];
            for row in values.chunks_exact(columns) {
                row.iter().zip(&mut sums).for_each(|(&w, sum)| *sum += f64::from(w) * f64::from(w));
            }
            sums
        })?;
        let mut total = vec![0.0; columns];
        for part in &parts {
            total.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        Ok(total)
    }

    /// Σ_k w_jk²·`input`_k of each row `j` of a span, averaged over the matrices of a stack: `E[y²]` if the inputs were independent.
    fn row_energy(&self, tensor: &TensorInfo, span: &Span, input: &[f64]) -> Result<Vec<f64>> {
        let columns = tensor.columns() as usize;
        let parts = self.blocks(tensor, |_, values| {
            let one = |row: &[f32]| row.iter().zip(input).map(|(&w, x)| f64::from(w) * f64::from(w) * x).sum::<f64>();
            values.chunks_exact(columns).map(one).collect::<Vec<f64>>()
        })?;
        let (rows, matrices) = (tensor.dims.get(1).copied().unwrap_or(1) as usize, tensor.matrices() as usize);
        let all: Vec<f64> = parts.into_iter().flatten().collect();
        let mean =
            |j: usize| (0..matrices).map(|m| all[m * rows + span.first as usize + j]).sum::<f64>() / matrices as f64;
        Ok((0..span.len as usize).map(mean).collect())
    }

    /// The values of a gain or bias.
    pub(super) fn vector(&self, span: &Span) -> Result<Vec<f64>> {
        let Some(tensor) = self.source.tensor(&span.tensor) else { return Ok(vec![1.0; span.len as usize]) };
        let mut values = vec![0.0; tensor.columns() as usize];
        (self.read)(tensor, 0, &mut values)?;
        Ok(values.into_iter().map(f64::from).collect())
    }

    /// `E[x²]` behind a norm: gain² + bias², because a normed vector has the mean square 1.
    pub(super) fn behind_norm(&self, spans: &[Span]) -> Result<Vec<f64>> {
        let mut sums: Vec<f64> = Vec::new();
        for span in spans {
            let squares = self.vector(span)?.into_iter().map(|v| v * v);
            sums = if sums.is_empty() {
                squares.collect()
            } else {
                sums.iter().zip(squares).map(|(a, b)| a + b).collect()
            };
        }
        Ok(sums)
    }

    /// ‖w‖² of each column over the group's quantised tensors.
    pub(super) fn weight_sq(&self, tensors: &[String]) -> Result<Vec<f64>> {
        let mut total: Vec<f64> = Vec::new();
        for tensor in tensors.iter().filter_map(|name| self.source.tensor(name)) {
            let energy = self.column_energy(tensor)?;
            total = if total.is_empty() { energy } else { total.iter().zip(energy).map(|(a, b)| a + b).collect() };
        }
        Ok(total)
    }

    /// Estimates `E[x²]` of a group's activation from what makes it; ones where nothing can be said. `known` holds the estimates behind norms.
    pub(super) fn estimate(&self, group: &InputGroup, known: &Estimates) -> Result<Vec<f64>> {
        let energy = |spans: &[Span]| -> Result<Option<Vec<f64>>> {
            let Some(span) = spans.iter().find(|span| span.axis == Axis::Rows) else { return Ok(None) };
            let Some(tensor) = self.source.tensor(&span.tensor) else { return Ok(None) };
            let ones = vec![1.0; tensor.columns() as usize];
            self.row_energy(tensor, span, known.get(&span.tensor).unwrap_or(&ones)).map(Some)
        };
        let makers = match &group.producer {
            Producer::Norm(spans) => Some(self.behind_norm(spans)?),
            Producer::Values { spans, .. } => energy(spans)?,
            Producer::Ffn { linear, nonlinear } => match (energy(linear)?, energy(nonlinear)?) {
                (Some(up), Some(gate)) => Some(up.iter().zip(&gate).map(|(up, gate)| up * gate).collect()),
                (up, gate) => up.or(gate),
            },
            Producer::Stream | Producer::Unknown { .. } => None,
        };
        let Some(makers) = makers else { return Ok(vec![1.0; group.columns as usize]) };
        Ok(group.shared_makers().map_or(makers.clone(), |shared| shared.iter().map(|&maker| makers[maker]).collect()))
    }
}

/// The statistics of a group's tensors, those that saw anything.
pub(super) fn entries<'a>(statistics: &'a Statistics, tensors: &'a [String]) -> impl Iterator<Item = &'a ChannelStats> {
    tensors.iter().filter_map(|name| statistics.entries.get(name)).filter(|entry| entry.rows_seen() > 0)
}

/// Pools the statistics of a group's tensors by the rows they saw; nothing if none saw any.
pub(super) fn measured(statistics: &Statistics, tensors: &[String], weight_sq: &[f64]) -> Option<Evidence> {
    let columns = weight_sq.len();
    let seen: u64 = entries(statistics, tensors).map(ChannelStats::rows_seen).sum();
    if seen == 0 {
        return None;
    }
    let complete = entries(statistics, tensors).all(|entry| entry.complete);
    let mean = |sums: fn(&ChannelStats) -> &[f64]| {
        let mut total = vec![0.0f64; columns];
        for entry in entries(statistics, tensors) {
            sums(entry)
                .chunks_exact(columns)
                .for_each(|part| total.iter_mut().zip(part).for_each(|(sum, part)| *sum += part));
        }
        total.into_iter().map(|sum| sum / seen as f64).collect::<Vec<f64>>()
    };
    let mean_sq = mean(|entry| &entry.sum_sq);
    let abs_max = if complete {
        let max = |j| entries(statistics, tensors).map(|entry| f64::from(entry.max_abs(j))).fold(0.0, f64::max);
        (0..columns).map(max).collect()
    } else {
        mean_sq.iter().map(|x| x.sqrt()).collect()
    };
    let mean_abs = complete.then(|| mean(|entry| &entry.sum_abs));
    let range = |j| {
        let reach = |[low, high]: [f32; 2], (min, max): (f32, f32)| [low.min(min), high.max(max)];
        let ranges: Option<Vec<(f32, f32)>> = entries(statistics, tensors).map(|entry| entry.range(j)).collect();
        let [low, high] = ranges?.into_iter().fold([f32::INFINITY, f32::NEG_INFINITY], reach);
        Some(f64::from(high) - f64::from(low))
    };
    let range = (0..columns).map(range).collect();
    Some(Evidence {
        channels: Channels { abs_max, mean_sq, weight_sq: weight_sq.to_vec() },
        mean_abs,
        range,
        grounds: Grounds::Statistics,
    })
}

/// Evidence from an estimate of `E[x²]`.
pub(super) fn estimated(mean_sq: Vec<f64>, weight_sq: Vec<f64>) -> Evidence {
    let abs_max = mean_sq.iter().map(|x| x.sqrt()).collect();
    Evidence {
        channels: Channels { abs_max, mean_sq, weight_sq },
        mean_abs: None,
        range: None,
        grounds: Grounds::Structure,
    }
}
