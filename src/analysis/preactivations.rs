//! Finds the tensors before an activation function, and multiplies them with sample rows.

use super::describe::mean;
use super::gates::{Gate, Pre};
use super::record::{GateDetail, GateRow};
use super::sample::{matrices, rows_of};
use super::subject::Ground;
use crate::error::Result;
use crate::gguf::TensorInfo;
use crate::math::dots::product;
use crate::model::{Axis, Function, Producer, Span, TensorName};

/// Weight rows that are read at a time.
const BLOCK: usize = 64;
/// Sample rows that an expert needs for its channels to be measured.
const MIN_ROWS: usize = 8;
/// Salient channels whose gradients are shown.
const SALIENT: usize = 10;

/// A tensor whose output enters an activation function.
#[derive(Debug, Clone, Copy)]
pub(super) struct GateTensor<'a> {
    pub(super) tensor: &'a TensorInfo,
    pub(super) layer: u32,
    /// The rows of each matrix that do.
    rows: &'a Span,
    bias: Option<&'a Span>,
}

impl<'a> GateTensor<'a> {
    /// The first matrix among the spans inside a nonlinearity, and its bias.
    fn of(ground: &'a Ground<'_>, nonlinear: &'a [Span]) -> Option<Self> {
        let at = nonlinear.iter().position(|span| span.axis == Axis::Rows)?;
        let rows = &nonlinear[at];
        let tensor = ground.job.source.tensor(&rows.tensor)?;
        let layer = TensorName::parse(&tensor.name).block?;
        Some(Self { tensor, layer, rows, bias: nonlinear.get(at + 1).filter(|span| span.axis == Axis::Columns) })
    }
}

impl Ground<'_> {
    /// The gates of the model, in the order of the layers.
    pub(super) fn gates(&self) -> Vec<GateTensor<'_>> {
        let mut found = Vec::new();
        for group in &self.all {
            if let Producer::Ffn { nonlinear, .. } = &group.producer {
                found.extend(GateTensor::of(self, nonlinear));
            }
        }
        found
    }

    /// Multiplies the sample rows of a gate with its weights; nothing if there are too few.
    pub(super) fn pre_activations(&self, gate: &GateTensor<'_>) -> Result<Vec<Pre>> {
        let stacked = gate.tensor.matrices() > 1;
        let mut parts = Vec::new();
        for matrix in matrices(self.job.statistics, gate.tensor, self.extent.experts) {
            let x = self.gate_input(gate, matrix);
            let tokens = x.len() / gate.tensor.columns().max(1) as usize;
            if tokens >= if stacked { MIN_ROWS } else { 1 } {
                parts.push(self.part(gate, matrix, &x)?);
            }
        }
        self.job.source.release(gate.tensor, 0..gate.tensor.bytes as usize);
        Ok(parts)
    }

    /// The sample rows that enter one matrix of a gate.
    fn gate_input(&self, gate: &GateTensor<'_>, matrix: u32) -> Vec<f32> {
        let matrix = (gate.tensor.matrices() > 1).then_some(matrix);
        rows_of(self.job.statistics, &gate.tensor.name, matrix, self.extent.sample_rows)
    }

    fn part(&self, gate: &GateTensor<'_>, matrix: u32, x: &[f32]) -> Result<Pre> {
        let columns = gate.tensor.columns() as usize;
        let len = gate.rows.len as usize;
        let base = u64::from(matrix) * (gate.tensor.rows() / gate.tensor.matrices()) + gate.rows.first;
        let tokens = x.len() / columns;
        let (mut z, mut weight_magnitude) = (Vec::with_capacity(len * tokens), Vec::with_capacity(len));
        let mut rows = vec![0.0; BLOCK.min(len) * columns];
        for first in (0..len).step_by(BLOCK) {
            let rows = &mut rows[..BLOCK.min(len - first) * columns];
            self.read(gate.tensor, base + first as u64, rows)?;
            z.extend(product(rows, x, columns));
            weight_magnitude
                .extend(rows.chunks_exact(columns).map(|row| mean(row.iter().map(|&w| f64::from(w.abs()))) as f32));
        }
        if let Some(bias) = gate.bias.and_then(|span| Some((self.job.source.tensor(&span.tensor)?, span.first))) {
            let mut values = vec![0.0; bias.0.columns() as usize];
            self.read(bias.0, if bias.0.rows() > 1 { u64::from(matrix) } else { 0 }, &mut values)?;
            let values = &values[bias.1 as usize..];
            z.chunks_exact_mut(tokens).zip(values).for_each(|(z, b)| z.iter_mut().for_each(|z| *z += b));
        }
        let input_magnitude = mean(x.iter().map(|&x| f64::from(x).abs()));
        Ok(Pre { matrix, first: 0, tokens, z, weight_magnitude, input_magnitude })
    }

    /// The summary row of a gate; nothing if there are too few sample rows.
    pub(super) fn gate_row(&self, gate: &GateTensor<'_>, tau: f64) -> Result<Option<GateRow>> {
        let parts = self.pre_activations(gate)?;
        let measured = Gate::new(&parts, Function::of(&self.arch.name), tau);
        let rows = parts.iter().map(|part| part.tokens as u32).sum();
        let row = || measured.row(&gate.tensor.name, gate.layer, rows, parts.len() as u32);
        Ok((!measured.is_empty()).then(row))
    }

    /// The channels of a gate, at most `most`; nothing if there are too few sample rows.
    pub(super) fn gate_detail(&self, gate: &GateTensor<'_>, tau: f64, most: usize) -> Result<Option<GateDetail>> {
        let parts = self.pre_activations(gate)?;
        let measured = Gate::new(&parts, Function::of(&self.arch.name), tau);
        if measured.is_empty() {
            return Ok(None);
        }
        let mut saliency = Vec::new();
        let rows = gate.tensor.rows() / gate.tensor.matrices();
        for (matrix, channel, z) in measured.salient(SALIENT) {
            let mut weights = vec![0.0; gate.tensor.columns() as usize];
            let row = u64::from(matrix) * rows + gate.rows.first + u64::from(channel);
            self.read(gate.tensor, row, &mut weights)?;
            saliency.extend(measured.gradient(matrix, channel, z, &self.gate_input(gate, matrix), &weights));
        }
        Ok(Some(measured.detail(&gate.tensor.name, most, saliency)))
    }
}
