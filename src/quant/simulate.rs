//! What a runtime's rounding of activations costs, seen on stock llama.cpp: the rows that enter multiplications by TCQ4 tensors are rounded as
//! the runtime would round them, and put back for everybody else. Values are emulated, not kernels: products and sums stay llama.cpp's.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::activation::Activations;
use super::transform::Transform;
use crate::Result;
use crate::llama::{Input, InputId, Node, Rewriter};
use crate::math::Permutation;
use crate::tcq::{CHUNK, Codec};

/// Rounds the inputs of some multiplications: per row gather by the tensor's permutation, scale, rotate by chunks, round, and all the way back.
#[derive(Debug, Clone)]
pub struct Simulation {
    path: Activations,
    codec: Codec,
    /// The bases in which inputs are rounded, each once, and which of them each tensor has.
    bases: Vec<Basis>,
    tensors: BTreeMap<String, usize>,
    /// The last input that was rounded, with its basis: neighbours (q, k, v; gate, up) read the same.
    last: Option<(InputId, usize)>,
    rounded: Vec<f32>,
}

/// What the input of a quantised tensor is, seen from the input in the running model.
#[derive(Debug, Clone, Default, PartialEq)]
struct Basis {
    /// A permutation and the way back.
    order: Option<(Permutation, Permutation)>,
    /// What the gathered channels are multiplied by.
    factors: Option<Vec<f32>>,
}

impl Basis {
    fn new(order: Option<&Permutation>, factors: Option<Vec<f32>>) -> Self {
        Self { order: order.map(|gather| (gather.clone(), gather.inverse())), factors }
    }

    /// Fills `out` with the input of the quantised tensor for the model's `row`.
    fn enter(&self, row: &[f32], out: &mut [f32]) {
        match &self.order {
            Some((gather, _)) => gather.gather(row, out),
            None => out.copy_from_slice(row),
        }
        if let Some(factors) = &self.factors {
            out.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        }
    }

    /// The way back.
    fn leave(&self, row: &mut [f32]) {
        if let Some(factors) = &self.factors {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value /= factor);
        }
        if let Some((_, scatter)) = &self.order {
            let gathered = row.to_vec();
            scatter.gather(&gathered, row);
        }
    }
}

impl Simulation {
    /// Acts on the multiplications by `tensors`, whose columns are gathered by the permutation, if there is one.
    pub fn new(
        path: Activations,
        codec: Codec,
        tensors: impl IntoIterator<Item = (String, Option<Permutation>)>,
    ) -> Self {
        let (bases, places) = (Vec::new(), BTreeMap::new());
        let mut simulation = Self { path, codec, bases, tensors: places, last: None, rounded: Vec::new() };
        for (name, permutation) in tensors {
            simulation.insert(name, Basis::new(permutation.as_ref(), None));
        }
        simulation
    }

    /// Acts on the multiplication by `tensor` too, in a model that has not gone through `transform` while the tensor that is meant has: what
    /// enters that one is gathered in the order of its columns and divided by their factors.
    pub fn add(&mut self, tensor: &str, transform: &Transform) {
        let order = transform.columns.as_ref();
        let gathered = |scale: &Vec<f32>| match order {
            Some(order) => order.indices().iter().map(|&column| 1.0 / scale[column as usize]).collect(),
            None => scale.iter().map(|factor| 1.0 / factor).collect(),
        };
        self.insert(tensor.to_owned(), Basis::new(order, transform.column_scale.as_ref().map(gathered)));
    }

    fn insert(&mut self, tensor: String, basis: Basis) {
        let place = self.bases.iter().position(|known| *known == basis).unwrap_or_else(|| {
            self.bases.push(basis);
            self.bases.len() - 1
        });
        self.tensors.insert(tensor, place);
    }

    /// The activation path.
    pub fn path(&self) -> Activations {
        self.path
    }

    /// How many tensors are acted on.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether anything is rounded at all.
    pub fn rounds(&self) -> bool {
        self.path != Activations::None && !self.is_empty()
    }

    /// Whether there is nothing to act on.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

impl Rewriter for Simulation {
    fn begin_graph(&mut self, _tokens: usize) {
        self.last = None;
    }

    fn rewrites(&mut self, node: &Node<'_>) -> bool {
        self.tensors.contains_key(node.weight)
    }

    fn rewrite(&mut self, node: &Node<'_>, input: &mut Input<'_>) -> Result<()> {
        let Some(&place) = self.tensors.get(node.weight) else { return Ok(()) };
        let columns = input.columns();
        let mut rows = input.rows_mut();
        if self.last != Some((node.input, place)) {
            self.rounded.resize(rows.len() * columns, 0.0);
            let (path, codec, basis) = (self.path, self.codec, &self.bases[place]);
            let pairs = self.rounded.par_chunks_exact_mut(columns).zip(&rows);
            pairs.for_each(|(rounded, row)| round_row(path, codec, basis, row, rounded));
            self.last = Some((node.input, place));
        }
        let pairs = rows.iter_mut().zip(self.rounded.chunks_exact(columns));
        pairs.for_each(|(row, rounded)| row.copy_from_slice(rounded));
        Ok(())
    }
}

/// Rounds a row as the runtime sees it; a last chunk that is not whole is rounded without rotation.
fn round_row(path: Activations, codec: Codec, basis: &Basis, row: &[f32], rounded: &mut [f32]) {
    basis.enter(row, rounded);
    let whole = rounded.len() - rounded.len() % CHUNK;
    codec.fwht(&mut rounded[..whole]);
    path.round(rounded);
    codec.fwht(&mut rounded[..whole]);
    basis.leave(rounded);
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

    fn basis(len: usize) -> Basis {
        Basis::new(Some(&order(len)), Some((0..len).map(|i| 0.5 + (i % 7) as f32).collect()))
    }

    #[test]
    fn without_rounding_a_row_comes_back() {
        let (codec, row, mut back) = (Codec::new(Encoder::Default), wave(512), vec![0.0; 512]);
        round_row(Activations::None, codec, &basis(512), &row, &mut back);
        assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_rounded_row_is_what_the_definition_says() {
        let (codec, row, basis) = (Codec::new(Encoder::Default), wave(512), Basis::new(Some(&order(512)), None));
        for path in Activations::ALL {
            let mut rounded = vec![0.0; 512];
            round_row(path, codec, &basis, &row, &mut rounded);
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

    #[test]
    fn a_transform_is_seen_from_the_model_that_lacks_it() {
        let (codec, row) = (Codec::new(Encoder::Default), wave(512));
        let scale: Vec<f32> = (0..512).map(|i| 0.25 * 2f32.powi(i % 4)).collect();
        let transform =
            Transform { column_scale: Some(scale.clone()), columns: Some(order(512)), ..Transform::default() };
        let mut seen = Simulation::new(Activations::Int4, codec, [("plain".to_owned(), None)]);
        seen.add("a", &transform);
        seen.add("b", &transform);
        assert_eq!((seen.bases.len(), seen.len(), seen.tensors["a"]), (2, 3, 1));
        let mut found = vec![0.0; 512];
        round_row(Activations::Int4, codec, &seen.bases[1], &row, &mut found);
        // In the transformed model the activation comes divided by the factors (powers of two, so exactly), and only the order is left.
        let divided: Vec<f32> = row.iter().zip(&scale).map(|(value, factor)| value / factor).collect();
        let mut expected = vec![0.0; 512];
        round_row(Activations::Int4, codec, &Basis::new(Some(&order(512)), None), &divided, &mut expected);
        let expected: Vec<f32> = expected.iter().zip(&scale).map(|(value, factor)| value * factor).collect();
        assert_eq!(found, expected);
        assert_ne!(found, row);
    }
}
