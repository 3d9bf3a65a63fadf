//! What a runtime does to the input of one multiplication, seen in the basis in which the model has it: scale, gather, rotate by chunks, round,
//! and all of it back. Values are emulated, not kernels.

use super::activation::Activations;
use super::transform::Transform;
use crate::math::Permutation;
use crate::tcq::{CHUNK, Codec};

/// How the rows that enter one multiplication are rounded.
#[derive(Debug, Clone, PartialEq)]
pub struct InputRounding {
    path: Activations,
    /// Factors of the channels, divided out before the rows are gathered.
    scale: Option<Vec<f32>>,
    order: Option<Order>,
}

/// A permutation and the way back.
#[derive(Debug, Clone, PartialEq)]
struct Order {
    gather: Permutation,
    scatter: Permutation,
}

impl InputRounding {
    /// In a file whose scales are folded already: only the runtime's permutation is left.
    pub fn new(path: Activations, permutation: Option<Permutation>) -> Self {
        let order = permutation.map(|gather| Order { scatter: gather.inverse(), gather });
        Self { path, scale: None, order }
    }

    /// In a model to which `transform` is still to be applied. A scale of the weight's columns divides its input.
    pub fn before(path: Activations, transform: Option<&Transform>) -> Self {
        let order = transform.and_then(|transform| transform.columns.clone());
        let scale = transform.and_then(|transform| transform.column_scale.clone());
        Self { scale, ..Self::new(path, order) }
    }

    /// The same input on another path.
    #[must_use]
    pub fn on(&self, path: Activations) -> Self {
        Self { path, ..self.clone() }
    }

    /// The activation path.
    pub fn path(&self) -> Activations {
        self.path
    }

    /// Rounds a row as the runtime sees it; a last chunk that is not whole is rounded without rotation.
    ///
    /// # Panics
    /// If the lengths of the rows, the scale and the permutation differ.
    pub fn round_row(&self, codec: Codec, row: &[f32], rounded: &mut [f32]) {
        match &self.scale {
            None => self.round_scaled(codec, row, rounded),
            Some(scale) => {
                assert_eq!(scale.len(), row.len());
                let scaled: Vec<f32> = row.iter().zip(scale).map(|(value, factor)| value / factor).collect();
                self.round_scaled(codec, &scaled, rounded);
                rounded.iter_mut().zip(scale).for_each(|(value, factor)| *value *= factor);
            }
        }
    }

    fn round_scaled(&self, codec: Codec, row: &[f32], rounded: &mut [f32]) {
        match &self.order {
            Some(order) => order.gather.gather(row, rounded),
            None => rounded.copy_from_slice(row),
        }
        let whole = rounded.len() / CHUNK * CHUNK;
        codec.fwht(&mut rounded[..whole]);
        self.path.round(rounded);
        codec.fwht(&mut rounded[..whole]);
        if let Some(order) = &self.order {
            let gathered = rounded.to_vec();
            order.scatter.gather(&gathered, rounded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcq::Encoder;

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0 + (i as f32 * 0.01).cos()).collect()
    }

    fn order(len: usize) -> Permutation {
        Permutation::new(&(0..len as i64).map(|i| i * 5 % len as i64).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn without_rounding_a_row_comes_back() {
        let (codec, row, mut back) = (Codec::new(Encoder::Default), wave(512), vec![0.0; 512]);
        InputRounding::new(Activations::None, Some(order(512))).round_row(codec, &row, &mut back);
        assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_scale_is_divided_out_and_multiplied_back() {
        let (codec, row) = (Codec::new(Encoder::Default), wave(512));
        let scale: Vec<f32> = (0..512).map(|i| [0.25, 1.0, 4.0][i % 3]).collect();
        let transform =
            Transform { column_scale: Some(scale.clone()), columns: Some(order(512)), ..Transform::default() };
        let divided: Vec<f32> = row.iter().zip(&scale).map(|(value, factor)| value / factor).collect();
        for path in Activations::ALL {
            let (mut found, mut expected) = (vec![0.0; 512], vec![0.0; 512]);
            InputRounding::before(path, Some(&transform)).round_row(codec, &row, &mut found);
            InputRounding::new(path, Some(order(512))).round_row(codec, &divided, &mut expected);
            expected.iter_mut().zip(&scale).for_each(|(value, factor)| *value *= factor);
            assert_eq!(found, expected, "{path}"); // powers of two: exact
        }
    }

    #[test]
    fn a_rounded_row_is_what_the_definition_says() {
        let (codec, row) = (Codec::new(Encoder::Default), wave(512));
        for path in Activations::ALL {
            let mut rounded = vec![0.0; 512];
            InputRounding::new(path, Some(order(512))).round_row(codec, &row, &mut rounded);
            // new[i] = old[5 i mod 512], rotated by Sylvester's matrix in f64, rounded, rotated and put back.
            let rotate = |values: &[f32]| -> Vec<f32> {
                let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let one =
                    |chunk: &[f32], i: usize| (0..256).map(|j| sign(i, j) * f64::from(chunk[j])).sum::<f64>() / 16.0;
                values.chunks(256).flat_map(|chunk| (0..256).map(|i| one(chunk, i) as f32)).collect()
            };
            let gathered: Vec<f32> = (0..512).map(|i| row[i * 5 % 512]).collect();
            let mut codes = rotate(&gathered);
            path.round(&mut codes);
            let back = rotate(&codes);
            // A value on the border of two codes may fall to either side; a step of one code is spread over a chunk.
            let off = (0..512).filter(|&i| (rounded[i * 5 % 512] - back[i]).abs() > 1e-3).count();
            assert!(off == 0, "{path}: {off} of 512");
        }
    }
}
