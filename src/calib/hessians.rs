//! Sums the second moment of every input of a model's weights while text runs through it, each input once however many weights read it.
//!
//! All experts of a layer share one matrix per input: a row counts once for each expert that it is routed to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::hessian::Hessian;
use crate::Result;
use crate::llama::{Capture, InputId, Node, Observer};
use crate::math::products::LANES;

/// What makes two nodes one input: same values, same routing.
type Key = (InputId, Option<InputId>);

/// An observer that sums second moments.
#[derive(Debug, Default)]
pub struct Hessians {
    sums: Vec<Hessian>,
    by_weight: HashMap<String, usize>,
    seen: HashMap<Key, usize>,
    offsets: Vec<Vec<usize>>,
}

impl Hessians {
    /// The matrices by weight; weights with the same input share one.
    pub fn finish(self) -> BTreeMap<String, Arc<Hessian>> {
        let shared: Vec<Arc<Hessian>> = self.sums.into_iter().map(Arc::new).collect();
        self.by_weight.into_iter().map(|(weight, index)| (weight, Arc::clone(&shared[index]))).collect()
    }
}

impl Observer for Hessians {
    fn begin_graph(&mut self, _tokens: usize) {
        self.seen.clear();
    }

    fn wants(&mut self, node: &Node<'_>) -> bool {
        if !node.weight.starts_with("blk.") || !node.columns.is_multiple_of(LANES) || node.rows == 0 {
            return false;
        }
        let key = (node.input, node.routing);
        let known = self.by_weight.get(node.weight).copied();
        if let Some(&index) = self.seen.get(&key) {
            self.by_weight.entry(node.weight.to_owned()).or_insert(index);
            return false;
        }
        let index = known.unwrap_or_else(|| {
            self.sums.push(Hessian::new(node.columns));
            self.by_weight.insert(node.weight.to_owned(), self.sums.len() - 1);
            self.sums.len() - 1
        });
        self.seen.insert(key, index);
        true
    }

    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        let Some(&index) = self.by_weight.get(node.weight) else { return Ok(()) };
        self.offsets.clear();
        self.offsets.resize_with(node.matrices.max(1), Vec::new);
        input.rows_by_matrix(node, &mut self.offsets);
        for offsets in self.offsets.iter().filter(|offsets| !offsets.is_empty()) {
            self.sums[index].add(input.data, offsets);
        }
        Ok(())
    }
}

/// Two observers of one forward pass; each sees what it wants.
#[derive(Debug)]
pub(super) struct Pair<'a, A, B> {
    first: &'a mut A,
    second: &'a mut B,
    wanted: (bool, bool),
}

impl<'a, A, B> Pair<'a, A, B> {
    pub(super) fn new(first: &'a mut A, second: &'a mut B) -> Self {
        Self { first, second, wanted: (false, false) }
    }
}

impl<A: Observer, B: Observer> Observer for Pair<'_, A, B> {
    fn begin_graph(&mut self, tokens: usize) {
        self.first.begin_graph(tokens);
        self.second.begin_graph(tokens);
    }

    fn wants(&mut self, node: &Node<'_>) -> bool {
        self.wanted = (self.first.wants(node), self.second.wants(node));
        self.wanted.0 || self.wanted.1
    }

    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        if self.wanted.0 {
            self.first.observe(node, input)?;
        }
        if self.wanted.1 {
            self.second.observe(node, input)?;
        }
        Ok(())
    }
}
