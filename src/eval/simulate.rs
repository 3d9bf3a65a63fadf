//! What a runtime's rounding of activations costs, seen on stock llama.cpp: the rows that enter multiplications by TCQ4 tensors are rounded as
//! the runtime would round them, and put back for everybody else. Values are emulated, not kernels: products and sums stay llama.cpp's.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::Result;
use crate::llama::{Input, InputId, Node, Rewriter};
use crate::math::Permutation;
use crate::quant::{Activations, InputRounding};
use crate::tcq::Codec;

/// Rounds the inputs of some multiplications: per row gather by the tensor's permutation, rotate by chunks, round, rotate back, scatter.
#[derive(Debug, Clone)]
pub struct Simulation {
    codec: Codec,
    /// How inputs are rounded, each way once, and which of them each tensor takes.
    ways: Vec<InputRounding>,
    tensors: BTreeMap<String, usize>,
    /// The last input that was rounded, with its way: neighbours (q, k, v; gate, up) read the same.
    last: Option<(InputId, usize)>,
    rounded: Vec<f32>,
}

impl Simulation {
    /// Acts on the multiplications by `tensors`, whose columns are gathered by the permutation, if there is one.
    pub fn new(
        path: Activations,
        codec: Codec,
        tensors: impl IntoIterator<Item = (String, Option<Permutation>)>,
    ) -> Self {
        let tensors = tensors.into_iter().map(|(name, permutation)| (name, InputRounding::new(path, permutation)));
        Self::of(codec, tensors)
    }

    /// Acts on the multiplications by `tensors`, each in its own way.
    pub fn of(codec: Codec, tensors: impl IntoIterator<Item = (String, InputRounding)>) -> Self {
        let (mut ways, mut places): (Vec<InputRounding>, BTreeMap<String, usize>) = Default::default();
        for (name, way) in tensors {
            let place = ways.iter().position(|known| *known == way).unwrap_or_else(|| {
                ways.push(way);
                ways.len() - 1
            });
            places.insert(name, place);
        }
        Self { codec, ways, tensors: places, last: None, rounded: Vec::new() }
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
            let (codec, way) = (self.codec, &self.ways[place]);
            let pairs = self.rounded.par_chunks_exact_mut(columns).zip(&rows);
            pairs.for_each(|(rounded, row)| way.round_row(codec, row, rounded));
            self.last = Some((node.input, place));
        }
        let pairs = rows.iter_mut().zip(self.rounded.chunks_exact(columns));
        pairs.for_each(|(row, rounded)| row.copy_from_slice(rounded));
        Ok(())
    }
}
