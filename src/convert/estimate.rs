//! How long encoding will take on this machine: a sample of the work, timed. Nothing is written, and nothing is known but what was timed.

use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use super::batches::inputs;
use super::encode::RowRun;
use super::plan::Conversion;
use super::units::cut;
use crate::error::Result;
use crate::gguf::Source;
use crate::math::products::LANES;
use crate::quant::Recipe;
use crate::quant::rounding::{Curvature, round_stripes};
use crate::quant::step::Needs;
use crate::tcq::{CHUNK, Codec, TILE_ROWS, Tile};

/// Runs of rows that each thread encodes to be timed.
const RUNS: usize = 4;
/// Columns at which rounding is timed; its work grows with their square for each row, and that of the factorisation with their cube.
const COLUMNS: usize = 1024;

/// Seconds that parts of the encoding will take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EncodingTime {
    /// Reading, rotating, encoding.
    pub encode_seconds: f64,
    /// The share of the weights that this was timed on.
    pub encode_share: f64,
    /// Factoring second moments and choosing codes by them.
    pub round_seconds: f64,
}

/// Times a sample of the encoding of `plan`.
///
/// # Errors
/// As the encoding itself.
pub fn time_encoding(source: &Source, plan: &Conversion, recipe: &Recipe, codec: Codec) -> Result<EncodingTime> {
    let (encode_seconds, encode_share) = encode_sample(source, plan, codec)?;
    let round_seconds =
        if recipe.needs().covers(Needs::SECOND_MOMENTS) { rounding_time(source, plan, recipe, codec) } else { 0.0 };
    Ok(EncodingTime { encode_seconds, encode_share, round_seconds })
}

/// Seconds for all of the plan, and the share of it that was timed: runs of rows evenly spread over the model.
fn encode_sample(source: &Source, plan: &Conversion, codec: Codec) -> Result<(f64, f64)> {
    let tensors = source.tensors();
    let units = cut(tensors.iter().map(|t| (t.matrices(), t.rows() / t.matrices(), t.columns())));
    let count = (RUNS * rayon::current_num_threads()).min(units.len());
    let sample: Vec<_> = (0..count).map(|i| units[i * units.len() / count]).collect();
    let weights = |unit: &super::units::RowUnit| unit.rows * tensors[unit.tensor].columns();
    let (all, timed) = (units.iter().map(weights).sum::<u64>(), sample.iter().map(weights).sum::<u64>());
    let started = Instant::now();
    sample.par_iter().try_for_each(|unit| {
        let (tensor, to) = (&tensors[unit.tensor], plan.tensors[unit.tensor].to);
        RowRun { source, tensor, transform: None, to, importance: None, first: unit.first, rows: unit.rows }
            .encode(codec, None, None)
            .map(drop)
    })?;
    let share = timed as f64 / all.max(1) as f64;
    Ok((started.elapsed().as_secs_f64() / share.max(f64::MIN_POSITIVE), share))
}

/// Seconds for choosing the codes of all TCQ4 tensors by second moments: timed on made-up rows and moments, whose values the work does not depend on.
fn rounding_time(source: &Source, plan: &Conversion, recipe: &Recipe, codec: Codec) -> f64 {
    let hessian: Vec<f32> =
        (0..COLUMNS * COLUMNS).map(|i| if i / COLUMNS == i % COLUMNS { 1.0 } else { 0.0 }).collect();
    let started = Instant::now();
    let Some(curvature) = Curvature::new(&hessian, COLUMNS, recipe.damp.max(f64::EPSILON), recipe.act_order) else {
        return 0.0;
    };
    let factor = started.elapsed().as_secs_f64() / (COLUMNS as f64).powi(3);
    let threads = rayon::current_num_threads();
    let panels: Vec<(Vec<f32>, Vec<Tile>)> = (0..threads).map(|seed| panel(seed, codec)).collect();
    let started = Instant::now();
    panels.into_par_iter().for_each(|(rows, mut tiles)| {
        round_stripes(&rows, &mut tiles, &curvature, recipe.moves());
    });
    let round = started.elapsed().as_secs_f64() / ((threads * LANES) as f64 * (COLUMNS as f64).powi(2));
    let of_tensors =
        plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.elements() as f64 * t.dims[0] as f64 * round);
    let of_groups = inputs(source, plan, u64::MAX).into_iter().map(|group| (group.columns as f64).powi(3) * factor);
    of_tensors.chain(of_groups).sum()
}

/// Rows of pseudo-random values, rotated, and their tiles.
fn panel(seed: usize, codec: Codec) -> (Vec<f32>, Vec<Tile>) {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    let mut rows: Vec<f32> = (0..LANES * COLUMNS).map(value).collect();
    let mut tiles = vec![bytemuck::Zeroable::zeroed(); LANES / TILE_ROWS * COLUMNS / CHUNK];
    for (rows, tiles) in rows.chunks_exact_mut(TILE_ROWS * COLUMNS).zip(tiles.chunks_exact_mut(COLUMNS / CHUNK)) {
        // Finite values of this size cannot be refused.
        let _ = codec.encode_rows(rows, COLUMNS, tiles);
    }
    (rows, tiles)
}
