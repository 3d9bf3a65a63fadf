//! The output error of a quantised input group on sample rows: Σ ‖x wᵀ − Q(x) Q(w)ᵀ‖², relative to Σ ‖x wᵀ‖².
//!
//! Weights are quantised by the codec and activations as the runtime would, both ordered, scaled and rotated first. Only some rows of each
//! weight take part ([`sample_of`]), so the number compares settings of one group and says little between groups.

use super::activation::Activations;
use crate::math::Permutation;
pub(super) use crate::math::dots::product;
use crate::tcq::{CHUNK, Codec, TILE_ROWS, Tile};

/// Rows of each matrix that take part.
pub const WEIGHT_ROWS: usize = 64;
/// Sample rows that take part, of each part.
pub const SAMPLE_ROWS: usize = 128;

/// Weights that see the same sample rows.
#[derive(Debug)]
struct Part {
    rows: Vec<f32>,
    weights: Vec<f32>,
    outputs: Vec<f32>,
    importance: Option<Vec<f32>>,
}

/// What an objective measures on, beyond rows and weights.
#[derive(Debug, Clone, Default)]
pub struct Emphasis {
    /// The rows that the quantised weights see in place of the sample rows (which still give the outputs aimed at): with noise, for instance.
    pub seen: Option<Vec<f32>>,
    /// How much each weight row's output counts; ones if there is none. Errors with and without it do not compare.
    pub importance: Option<Vec<f32>>,
}

/// An objective for one input group.
#[derive(Debug)]
pub struct Objective {
    columns: usize,
    codec: Codec,
    activations: Activations,
    parts: Vec<Part>,
    output_sq: f64,
}

impl Objective {
    /// Begins an objective without data for `columns` channels.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 256, or zero.
    pub fn new(columns: usize, codec: Codec, activations: Activations) -> Self {
        assert!(columns > 0 && columns.is_multiple_of(CHUNK));
        Self { columns, codec, activations, parts: Vec::new(), output_sq: 0.0 }
    }

    /// Adds sample rows and the weights that multiply them, both row after row; the number of weight rows must be a multiple of 8.
    ///
    /// # Panics
    /// If either is not whole rows.
    pub fn add(&mut self, rows: Vec<f32>, weights: Vec<f32>) {
        self.add_weighted(rows, weights, Emphasis::default());
    }

    /// The same, with rows that differ from those seen, or outputs that do not all count alike.
    ///
    /// # Panics
    /// If rows or weights are not whole rows, there are not as many rows seen, or not as many importances as weight rows.
    pub fn add_weighted(&mut self, rows: Vec<f32>, weights: Vec<f32>, Emphasis { seen, importance }: Emphasis) {
        assert!(rows.len().is_multiple_of(self.columns) && weights.len().is_multiple_of(self.columns * TILE_ROWS));
        assert!(seen.as_ref().is_none_or(|seen| seen.len() == rows.len()));
        assert!(importance.as_ref().is_none_or(|importance| importance.len() == weights.len() / self.columns));
        let outputs = product(&rows, &weights, self.columns);
        self.output_sq += energy(outputs.iter().copied(), importance.as_deref());
        self.parts.push(Part { rows: seen.unwrap_or(rows), weights, outputs, importance });
    }

    /// Whether there is nothing to measure on.
    pub fn is_empty(&self) -> bool {
        self.output_sq <= 0.0
    }

    /// The number of sample rows.
    pub fn sample_rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len() / self.columns).sum()
    }

    /// Measures one choice of scale and order; infinite if the weights cannot be encoded.
    pub fn error(&self, scale: Option<&[f32]>, order: Option<&Permutation>) -> f64 {
        let error: f64 = self.parts.iter().map(|part| self.part_error(part, scale, order)).sum();
        error / self.output_sq
    }

    /// The squared error of one part.
    fn part_error(&self, part: &Part, scale: Option<&[f32]>, order: Option<&Permutation>) -> f64 {
        let inverse: Option<Vec<f32>> = scale.map(|scale| scale.iter().map(|factor| 1.0 / factor).collect());
        let mut rows = changed(&part.rows, self.columns, scale, order);
        if self.activations != Activations::None {
            self.codec.fwht(&mut rows);
            rows.chunks_exact_mut(self.columns).for_each(|row| self.activations.round(row));
            self.codec.fwht(&mut rows);
        }
        let mut weights = changed(&part.weights, self.columns, inverse.as_deref(), order);
        let mut tiles = vec![<Tile as bytemuck::Zeroable>::zeroed(); self.columns / CHUNK];
        for tile_rows in weights.chunks_exact_mut(TILE_ROWS * self.columns) {
            if self.codec.encode_rows(tile_rows, self.columns, &mut tiles).is_err() {
                return f64::INFINITY;
            }
            self.codec.decode_rows(&tiles, self.columns, tile_rows);
        }
        let outputs = product(&rows, &weights, self.columns);
        energy(outputs.iter().zip(&part.outputs).map(|(a, b)| a - b), part.importance.as_deref())
    }
}

/// The indices of the rows of a matrix that take part: at most [`WEIGHT_ROWS`], a multiple of 8, evenly spread from the first on.
pub fn sample_of(rows: usize) -> impl Iterator<Item = usize> {
    let count = (rows / TILE_ROWS * TILE_ROWS).min(WEIGHT_ROWS);
    (0..count).map(move |i| i * rows / count)
}

/// Rows scaled, then gathered.
fn changed(rows: &[f32], columns: usize, scale: Option<&[f32]>, order: Option<&Permutation>) -> Vec<f32> {
    let mut new = rows.to_vec();
    if let Some(scale) = scale {
        new.chunks_exact_mut(columns)
            .for_each(|row| row.iter_mut().zip(scale).for_each(|(value, factor)| *value *= factor));
    }
    let Some(order) = order else { return new };
    let mut gathered = vec![0.0; new.len()];
    new.chunks_exact(columns).zip(gathered.chunks_exact_mut(columns)).for_each(|(old, new)| order.gather(old, new));
    gathered
}

/// The sum of squares of outputs, row after row, each times the importance of its channel.
fn energy(outputs: impl Iterator<Item = f32>, importance: Option<&[f32]>) -> f64 {
    let squares = outputs.map(|y| f64::from(y) * f64::from(y));
    match importance {
        None => squares.sum(),
        Some(importance) => squares.zip(importance.iter().cycle()).map(|(sq, &weight)| sq * f64::from(weight)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcq::Encoder;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next() + next() + next()).collect()
    }

    fn objective(activations: Activations, outlier: f32) -> Objective {
        let mut objective = Objective::new(512, Codec::new(Encoder::Default), activations);
        let mut rows = noise(16 * 512, 1);
        rows.chunks_mut(512).for_each(|row| (0..12).for_each(|i| row[i * 5] *= outlier));
        objective.add(rows, noise(16 * 512, 2));
        objective
    }

    #[test]
    fn more_rounding_is_more_error() {
        let error = |activations| objective(activations, 1.0).error(None, None);
        let (none, int8, int4, fork) = (
            error(Activations::None),
            error(Activations::Int8),
            error(Activations::Int4),
            error(Activations::Int4Fork),
        );
        assert!(none > 1e-4 && none < 0.02, "{none}");
        assert!(none < int8 && int8 < 1.1 * none && int8 < int4 && int4 < fork, "{none} {int8} {int4} {fork}");
    }

    #[test]
    fn the_inverse_scale_and_a_spread_order_help_against_outliers() {
        let objective = objective(Activations::Int4, 20.0);
        let mut scale = vec![1.0; 512];
        (0..12).for_each(|i| scale[i * 5] = 0.2);
        let plain = objective.error(None, None);
        assert!(objective.error(Some(&scale), None) < 0.8 * plain);
        let mut indices: Vec<i64> = (0..512).collect();
        (0..6).for_each(|i| indices.swap(i * 10, 256 + i));
        assert!(objective.error(None, Some(&Permutation::new(&indices).unwrap())) < plain);
    }

    #[test]
    fn an_output_that_counts_for_nothing_does_not_and_ones_change_nothing() {
        let (rows, weights) = (noise(8 * 256, 5), noise(16 * 256, 6));
        let error = |weights: &[f32], emphasis: Emphasis| {
            let mut objective = Objective::new(256, Codec::new(Encoder::Default), Activations::None);
            objective.add_weighted(rows.clone(), weights.to_vec(), emphasis);
            objective.error(None, None)
        };
        let with = |importance: Vec<f32>| Emphasis { importance: Some(importance), ..Emphasis::default() };
        let plain = error(&weights, Emphasis::default());
        assert_eq!(error(&weights, with(vec![1.0; 16])), plain);
        let halves = [vec![1.0; 8], vec![0.0; 8]].concat();
        let (first, masked) = (error(&weights[..8 * 256], Emphasis::default()), error(&weights, with(halves)));
        assert!(
            (first - masked).abs() < 1e-6 * first && (first - plain).abs() > 1e-6 * first,
            "{first} {masked} {plain}"
        );
    }

    #[test]
    fn rows_seen_with_noise_add_its_energy() {
        let (rows, weights) = (noise(8 * 256, 5), noise(8 * 256, 6));
        let seen: Vec<f32> = rows.iter().zip(noise(8 * 256, 7)).map(|(x, e)| x + 0.3 * e).collect();
        let error = |seen: Option<Vec<f32>>| {
            let mut objective = Objective::new(256, Codec::new(Encoder::Default), Activations::None);
            objective.add_weighted(rows.clone(), weights.clone(), Emphasis { seen, ..Emphasis::default() });
            objective.error(None, None)
        };
        let added = error(Some(seen)) - error(None);
        // The noise has .09 of the energy of the rows.
        assert!((0.06..0.12).contains(&added), "{added}");
    }

    #[test]
    fn samples_are_whole_tiles_spread_evenly() {
        assert_eq!(sample_of(7).count(), 0);
        assert_eq!(sample_of(12).collect::<Vec<_>>(), [0, 1, 3, 4, 6, 7, 9, 10]);
        assert_eq!(sample_of(640).collect::<Vec<_>>(), (0..64).map(|i| i * 10).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_be_encoded_is_infinitely_bad() {
        let mut objective = Objective::new(256, Codec::new(Encoder::Default), Activations::None);
        objective.add(noise(256, 3), noise(8 * 256, 4));
        assert_eq!(objective.error(Some(&[f32::MIN_POSITIVE; 256]), None), f64::INFINITY);
        assert!(!objective.is_empty() && objective.sample_rows() == 1);
    }
}
