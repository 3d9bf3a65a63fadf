//! What a runtime's rounding of activations costs, seen on stock llama.cpp: the rows that enter multiplications by TCQ4 tensors are rounded as
//! the runtime would round them, and put back for everybody else. Values are emulated, not kernels: products and sums stay llama.cpp's.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::Result;
use crate::llama::{Input, InputId, Node, Rewriter};
use crate::math::Permutation;
use crate::quant::Activations;
use crate::tcq::{CHUNK, Codec};

/// Rounds the inputs of some multiplications: per row gather by the tensor's permutation, rotate by chunks, round, rotate back, scatter.
#[derive(Debug, Clone)]
pub struct Simulation {
    path: Activations,
    codec: Codec,
    /// The permutations of the tensors that are acted on, each once, and which of them each tensor has.
    orders: Vec<Option<Order>>,
    tensors: BTreeMap<String, usize>,
    /// The last input that was rounded, with its order: neighbours (q, k, v; gate, up) read the same.
    last: Option<(InputId, usize)>,
    rounded: Vec<f32>,
}

/// A permutation and the way back.
#[derive(Debug, Clone, PartialEq)]
struct Order {
    gather: Permutation,
    scatter: Permutation,
}

impl Simulation {
    /// Acts on the multiplications by `tensors`, whose columns are gathered by the permutation, if there is one.
    pub fn new(
        path: Activations,
        codec: Codec,
        tensors: impl IntoIterator<Item = (String, Option<Permutation>)>,
    ) -> Self {
        let (mut orders, mut places): (Vec<Option<Order>>, BTreeMap<String, usize>) = Default::default();
        for (name, permutation) in tensors {
            let order = permutation.map(|gather| Order { scatter: gather.inverse(), gather });
            let place = orders.iter().position(|known| *known == order).unwrap_or_else(|| {
                orders.push(order);
                orders.len() - 1
            });
            places.insert(name, place);
        }
        Self { path, codec, orders, tensors: places, last: None, rounded: Vec::new() }
    }

    /// The activation path.
    pub fn path(&self) -> Activations {
        self.path
    }

    /// How many tensors are acted on.
    pub fn len(&self) -> usize {
        self.tensors.len()
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
            let (path, codec, order) = (self.path, self.codec, self.orders[place].as_ref());
            let pairs = self.rounded.par_chunks_exact_mut(columns).zip(&rows);
            pairs.for_each(|(rounded, row)| round_row(path, codec, order, row, rounded));
            self.last = Some((node.input, place));
        }
        let pairs = rows.iter_mut().zip(self.rounded.chunks_exact(columns));
        pairs.for_each(|(row, rounded)| row.copy_from_slice(rounded));
        Ok(())
    }
}

/// Rounds a row as the runtime sees it; a last chunk that is not whole is rounded without rotation.
fn round_row(path: Activations, codec: Codec, order: Option<&Order>, row: &[f32], rounded: &mut [f32]) {
    match order {
        Some(order) => order.gather.gather(row, rounded),
        None => rounded.copy_from_slice(row),
    }
    let whole = rounded.len() - rounded.len() % CHUNK;
    codec.fwht(&mut rounded[..whole]);
    path.round(rounded);
    codec.fwht(&mut rounded[..whole]);
    if let Some(order) = order {
        let gathered = rounded.to_vec();
        order.scatter.gather(&gathered, rounded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcq::Encoder;

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0 + (i as f32 * 0.01).cos()).collect()
    }

    fn order(len: usize) -> Order {
        let gather = Permutation::new(&(0..len as i64).map(|i| i * 5 % len as i64).collect::<Vec<_>>()).unwrap();
        Order { scatter: gather.inverse(), gather }
    }

    #[test]
    fn without_rounding_a_row_comes_back() {
        let (codec, row, mut back) = (Codec::new(Encoder::Default), wave(512), vec![0.0; 512]);
        round_row(Activations::None, codec, Some(&order(512)), &row, &mut back);
        assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_rounded_row_is_what_the_definition_says() {
        let (codec, row, order) = (Codec::new(Encoder::Default), wave(512), order(512));
        for path in Activations::ALL {
            let mut rounded = vec![0.0; 512];
            round_row(path, codec, Some(&order), &row, &mut rounded);
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
