//! One TCQ4 tensor at a time: rounding, error of weights and outputs, split by importance, over some of its rows.

use super::describe::{mean, short};
use super::importance::important;
use super::record::{Histogram, MeasuredOn, OutputErrors, Rounding, Split, TensorDetail};
use super::rounding::Residuals;
use super::sample::{Part, parts};
use super::split::{OutputSums, channel_mse, split};
use super::subject::Ground;
use crate::convert::Stripes;
use crate::error::Result;
use crate::gguf::TensorInfo;
use crate::math::dots::product;
use crate::quant::Activations;
use crate::tcq::TILE_ROWS;

/// Points of the curves of a tensor, at most.
const POINTS: usize = super::record::CHANNELS;
/// The paths that every output error is measured with.
const PATHS: [Activations; 3] = [Activations::Int8, Activations::Int4, Activations::Int4Group32];

/// What was found of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) measured_on: MeasuredOn,
    pub(super) error_rel: f64,
    pub(super) output: Option<OutputErrors>,
    pub(super) rounding: Rounding,
    pub(super) histogram: Histogram,
    pub(super) split: Option<Split>,
    delta: Vec<f32>,
}

/// Rows of one matrix: as they were, and as they are stored.
#[derive(Default)]
struct Rows {
    /// The model's own weights.
    own: Vec<f32>,
    /// Decoded, still rotated, scaled and ordered; a folded scale of the rows undone.
    rotated: Vec<f32>,
    /// Decoded minus own, in the model's own order.
    delta: Vec<f32>,
}

/// Sums over the parts of a tensor.
#[derive(Default)]
struct Sums {
    loss: [f64; 2],
    residuals: Residuals,
    delta: Vec<f32>,
    split: OutputSums,
    energy: f64,
    paths: [f64; PATHS.len() + 1],
    sample_rows: usize,
}

impl Ground<'_> {
    /// Measures one TCQ4 tensor.
    pub(super) fn measure(&self, tensor: &TensorInfo) -> Result<Found> {
        let group = self.group_of(&tensor.name);
        let mean_sq = group.and_then(|group| group.pooled.as_ref()).map(|pooled| pooled.mean_sq.as_slice());
        let columns = tensor.columns() as usize;
        let mask = mean_sq.map_or_else(|| vec![false; columns], important);
        let parts = parts(self.job.statistics, tensor, self.extent);
        let transform = self.transform(&tensor.name);
        let stripes = Stripes::open(self.job.source, tensor, transform, self.job.converted, self.job.settings.codec)?;
        let mut sums = Sums::default();
        for part in &parts {
            let rows = self.rows_of_part(tensor, &stripes, part, &mut sums)?;
            if !part.x.is_empty() {
                self.add_outputs(tensor, part, &rows, &mask, &mut sums);
            }
            sums.delta.extend(rows.delta);
        }
        self.job.source.release(tensor, 0..tensor.bytes as usize);
        let output = (sums.energy > 0.0).then(|| sums.output());
        let means = sums.split.means().filter(|_| mean_sq.is_some());
        Ok(Found {
            measured_on: MeasuredOn {
                weights: if self.job.converted.is_some() { "converted" } else { "encoded" }.into(),
                output_rows: (sums.delta.len() / columns.max(1)) as u32,
                matrices: parts.len() as u32,
                sample_rows: sums.sample_rows as u32,
            },
            error_rel: if sums.loss[1] > 0.0 { sums.loss[0] / sums.loss[1] } else { 0.0 },
            output,
            rounding: sums.residuals.rounding(),
            histogram: sums.residuals.histogram(),
            split: mean_sq.map(|mean_sq| split(mean_sq, &sums.delta, means)),
            delta: sums.delta,
        })
    }

    /// Reads and decodes the rows of one part.
    fn rows_of_part(&self, tensor: &TensorInfo, stripes: &Stripes<'_>, part: &Part, sums: &mut Sums) -> Result<Rows> {
        let columns = tensor.columns() as usize;
        let (codec, transform) = (self.job.settings.codec, self.transform(&tensor.name));
        let mut rows = Rows::default();
        for &first in &part.stripes {
            let stripe = stripes.read(first)?;
            sums.residuals.add(&stripe.rotated, columns, &stripe.tiles);
            let mut decoded = vec![0.0; columns * TILE_ROWS];
            codec.decode_rotated(&stripe.tiles, columns, &mut decoded);
            for (&q, &y) in decoded.iter().zip(&stripe.rotated) {
                let (q, y) = (f64::from(q), f64::from(y));
                sums.loss = [sums.loss[0] + (q - y) * (q - y), sums.loss[1] + y * y];
            }
            for offset in 0..TILE_ROWS {
                let source_row = transform.source_row(first as usize + offset);
                let factor = transform.row_scale.as_ref().map_or(1.0, |scale| scale[source_row]);
                decoded[offset * columns..][..columns].iter_mut().for_each(|v| *v /= factor);
                let at = rows.own.len();
                rows.own.resize(at + columns, 0.0);
                self.read(tensor, source_row as u64, &mut rows.own[at..])?;
            }
            rows.rotated.extend_from_slice(&decoded);
            codec.fwht(&mut decoded);
            rows.delta.extend(decoded);
        }
        for (row, own) in rows.delta.chunks_exact_mut(columns).zip(rows.own.chunks_exact(columns)) {
            to_own_order(transform, row);
            row.iter_mut().zip(own).for_each(|(value, own)| *value -= own);
        }
        Ok(rows)
    }

    /// Multiplies the sample rows with the rows of one part, in every way.
    fn add_outputs(&self, tensor: &TensorInfo, part: &Part, rows: &Rows, mask: &[bool], sums: &mut Sums) {
        let columns = mask.len();
        let codec = self.job.settings.codec;
        let wanted = product(&part.x, &rows.own, columns);
        sums.energy += wanted.iter().map(|&y| f64::from(y) * f64::from(y)).sum::<f64>();
        sums.sample_rows += part.x.len() / columns;
        sums.split.add(&part.x, &rows.delta, mask);
        let mut x = part.x.clone();
        let group = self.group_of(&tensor.name);
        if let Some(group) = group {
            self.preparation(group).apply(&mut x, columns);
        }
        codec.fwht(&mut x);
        let assumed = self.job.settings.activations;
        let known = PATHS.iter().position(|&path| path == assumed);
        for (at, path) in PATHS.into_iter().chain([assumed]).enumerate() {
            if at == PATHS.len() && (known.is_some() || path == Activations::None) {
                continue;
            }
            let mut rounded = x.clone();
            rounded.chunks_exact_mut(columns).for_each(|row| path.round(row));
            let found = product(&rounded, &rows.rotated, columns);
            sums.paths[at] += found.iter().zip(&wanted).map(|(&a, &b)| f64::from(a - b).powi(2)).sum::<f64>();
        }
        match (known, assumed) {
            (Some(at), _) => sums.paths[PATHS.len()] = sums.paths[at],
            (None, Activations::None) => sums.paths[PATHS.len()] = sums.split.total_sq(),
            (None, _) => {}
        }
    }

    /// The curves of one tensor.
    pub(super) fn tensor_detail(&self, tensor: &TensorInfo) -> Result<TensorDetail> {
        let found = self.measure(tensor)?;
        let columns = tensor.columns() as usize;
        let group = self.group_of(&tensor.name);
        let mean_sq = group.and_then(|group| group.pooled.as_ref()).map(|pooled| pooled.mean_sq.as_slice());
        let rows = (found.delta.len() / columns).max(1) as f64;
        let over_rows = |of: fn(f64) -> f64| {
            let mut sums = vec![0.0f64; columns];
            for row in found.delta.chunks_exact(columns) {
                row.iter().zip(&mut sums).for_each(|(&d, sum)| *sum += of(f64::from(d)));
            }
            bucket_means(&sums.into_iter().map(|sum| sum / rows).collect::<Vec<f64>>())
        };
        Ok(TensorDetail {
            name: tensor.name.clone(),
            rounding: found.histogram,
            bucket: bucket(columns) as u32,
            mean_sq: mean_sq.map(bucket_means).unwrap_or_default(),
            channel_mse: mean_sq.map(|x| bucket_means(&channel_mse(x, &found.delta))).unwrap_or_default(),
            delta_mean: over_rows(|d| d),
            delta_mean_abs: over_rows(f64::abs),
        })
    }
}

impl Sums {
    fn output(&self) -> OutputErrors {
        let relative = |error: f64| (error / self.energy) as f32;
        OutputErrors {
            weights_only: relative(self.split.total_sq()),
            int8: relative(self.paths[0]),
            int4: relative(self.paths[1]),
            int4_group32: relative(self.paths[2]),
            assumed: relative(self.paths[PATHS.len()]),
        }
    }
}

/// Undoes order and scale of the columns of one decoded row.
fn to_own_order(transform: &crate::quant::Transform, row: &mut [f32]) {
    if let Some(order) = &transform.columns {
        let new = row.to_vec();
        order.indices().iter().zip(new).for_each(|(&old, value)| row[old as usize] = value);
    }
    if let Some(scale) = &transform.column_scale {
        row.iter_mut().zip(scale).for_each(|(value, factor)| *value /= factor);
    }
}

/// Neighbours for which one point of a curve stands.
fn bucket(columns: usize) -> usize {
    columns.div_ceil(POINTS).max(1)
}

fn bucket_means(values: &[f64]) -> Vec<f32> {
    values.chunks(bucket(values.len())).map(|part| short(mean(part.iter().copied()))).collect()
}
