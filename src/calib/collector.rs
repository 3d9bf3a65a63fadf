//! The observer that calibrates: sums up each distinct input of a graph once and learns which weights share it.
//!
//! Lifecycle: [`Collector::begin_chunk`] before each chunk, the forward passes, at the end [`Collector::finish`]. Weights are those named
//! `blk.*` (and `output.weight` on request), as llama-imatrix has them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::moments::{Rows, accumulate};
use super::stats::{ChannelStats, SampleRows};
use super::summer::Summer;
use super::sums::ChannelSums;
use crate::Result;
use crate::error::ModelError;
use crate::llama::{Capture, InputId, Node, Observer};

/// One captured input: its sums, and the weights that multiply it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The weights; the first is the one at which it is captured.
    pub weights: Vec<String>,
    /// What is summed up.
    pub sums: ChannelSums,
    /// Sample rows so far.
    pub rows: SampleRows,
    /// The place of each of them among the rows that the whole run keeps.
    pub turns: Vec<u32>,
}

/// What is captured in a chunk.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Whether the inputs are summed.
    pub sums: bool,
    /// The token positions whose rows are kept, ascending.
    pub rows: Vec<usize>,
    /// How many rows the chunks before this one keep.
    pub rows_before: usize,
}

/// What makes two nodes one capture: same values, same routing, same number of matrices.
type Key = (InputId, Option<InputId>, usize);

/// Sums up the inputs of a model's weights.
#[derive(Debug, Default)]
pub struct Collector {
    with_output: bool,
    entries: Vec<Entry>,
    by_weight: HashMap<String, usize>,
    groups: Vec<Vec<String>>,
    group_of: HashMap<String, usize>,
    wanted: Wanted,
    /// Tokens of the chunk that earlier graphs have seen.
    before: usize,
    graph: Graph,
    offsets: Vec<Vec<usize>>,
    summer: Summer,
}

/// What is known about the graph that is running.
#[derive(Debug, Default)]
struct Graph {
    tokens: usize,
    captures: HashMap<Key, usize>,
    groups: HashMap<InputId, usize>,
}

/// The sums by weight; weights of one input share its sample rows.
pub(super) fn by_weight(entries: Vec<Entry>) -> BTreeMap<String, ChannelStats> {
    let mut by_name = BTreeMap::new();
    for Entry { weights, sums, rows, .. } in entries {
        let stats = sums.finish((!rows.is_empty()).then(|| Arc::new(rows)));
        by_name.extend(weights.into_iter().map(|weight| (weight, stats.clone())));
    }
    by_name
}

impl Collector {
    /// A collector of nothing yet; `with_output` includes the output head (of models that have one of their own).
    pub fn new(with_output: bool) -> Self {
        Self { with_output, ..Self::default() }
    }

    /// A collector that goes on from what another had.
    pub fn restore(with_output: bool, entries: Vec<Entry>, groups: Vec<Vec<String>>) -> Self {
        let weights =
            entries.iter().enumerate().flat_map(|(i, entry)| entry.weights.iter().map(move |w| (w.clone(), i)));
        let by_weight = weights.collect();
        let members = groups.iter().enumerate().flat_map(|(i, group)| group.iter().map(move |w| (w.clone(), i)));
        let group_of = members.collect();
        Self { with_output, entries, by_weight, groups, group_of, ..Self::default() }
    }

    /// Says who sums rows up.
    #[must_use]
    pub fn with(self, summer: Summer) -> Self {
        Self { summer, ..self }
    }

    /// Says what to capture in the next chunk.
    pub fn begin_chunk(&mut self, wanted: Wanted) {
        self.wanted = wanted;
        self.before = 0;
        self.graph = Graph::default();
    }

    /// What has been captured so far, in graph order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The groups of weights that share an input, in graph order.
    pub fn groups(&self) -> &[Vec<String>] {
        &self.groups
    }

    /// What has been captured, and the groups.
    pub(super) fn into_parts(self) -> (Vec<Entry>, Vec<Vec<String>>) {
        (self.entries, self.groups)
    }

    /// The sums by weight, and the groups.
    pub fn finish(self) -> (BTreeMap<String, ChannelStats>, Vec<Vec<String>>) {
        (by_weight(self.entries), self.groups)
    }

    fn is_calibrated(&self, node: &Node<'_>) -> bool {
        let named = node.weight.starts_with("blk.") || (self.with_output && node.weight == "output.weight");
        named && node.columns > 0 && node.matrices > 0 && node.rows > 0
    }

    /// Records that the weight reads this input.
    fn join_group(&mut self, node: &Node<'_>) {
        if let Some(&known) = self.group_of.get(node.weight) {
            self.graph.groups.insert(node.input, known);
            return;
        }
        let group = *self.graph.groups.entry(node.input).or_insert(self.groups.len());
        if group == self.groups.len() {
            self.groups.push(Vec::new());
        }
        self.groups[group].push(node.weight.to_owned());
        self.group_of.insert(node.weight.to_owned(), group);
    }

    /// Whether the node is to be captured: not if an earlier node of this graph has the same input.
    fn join_capture(&mut self, node: &Node<'_>) -> bool {
        let key = (node.input, node.routing, node.matrices);
        match (self.by_weight.get(node.weight).copied(), self.graph.captures.get(&key).copied()) {
            (None, Some(entry)) => {
                self.by_weight.insert(node.weight.to_owned(), entry);
                self.entries[entry].weights.push(node.weight.to_owned());
                false
            }
            // Seen again, the weight that captures can only be that of another graph, if llama.cpp ever cuts a batch in two.
            (Some(own), Some(entry)) if own == entry => self.entries[own].weights[0] == node.weight,
            (own, _) => {
                let entry = own.unwrap_or_else(|| self.add_entry(node));
                self.graph.captures.entry(key).or_insert(entry);
                true
            }
        }
    }

    fn add_entry(&mut self, node: &Node<'_>) -> usize {
        let index = self.entries.len();
        self.entries.push(Entry {
            weights: vec![node.weight.to_owned()],
            sums: ChannelSums::new(node.matrices, node.columns),
            rows: SampleRows { columns: node.columns, ..SampleRows::default() },
            turns: Vec::new(),
        });
        self.by_weight.insert(node.weight.to_owned(), index);
        index
    }

    /// The positions within this graph whose rows are wanted, each with its place among the rows of the run.
    fn wanted_rows(&self) -> impl Iterator<Item = (usize, usize)> {
        let range = self.before..self.before + self.graph.tokens;
        let turns = (self.wanted.rows_before..).zip(&self.wanted.rows);
        turns.filter(move |(_, row)| range.contains(row)).map(|(turn, row)| (turn, row - self.before))
    }
}

impl Observer for Collector {
    fn begin_graph(&mut self, tokens: usize) {
        self.before += self.graph.tokens;
        self.graph = Graph { tokens, ..Graph::default() };
    }

    fn wants(&mut self, node: &Node<'_>) -> bool {
        if !self.is_calibrated(node) {
            return false;
        }
        self.join_group(node);
        self.join_capture(node) && (self.wanted.sums || self.wanted_rows().next().is_some())
    }

    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        let Some(&index) = self.by_weight.get(node.weight) else { return Ok(()) };
        let sums = &self.entries[index].sums;
        let shape = (sums.matrices, sums.columns);
        if shape != (node.matrices, input.columns()) {
            return Err(ModelError::CalibrationShape {
                tensor: node.weight.to_owned(),
                expected: shape,
                got: (node.matrices, input.columns()),
            }
            .into());
        }
        if self.wanted.sums {
            self.sum_up(index, node, input)?;
        }
        self.keep_rows(index, node, input);
        Ok(())
    }
}

impl Collector {
    fn sum_up(&mut self, index: usize, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        self.offsets.iter_mut().for_each(Vec::clear);
        self.offsets.resize_with(node.matrices.max(self.offsets.len()), Vec::new);
        input.rows_by_matrix(node, &mut self.offsets);
        let sums = &mut self.entries[index].sums;
        for (matrix, offsets) in
            self.offsets.iter().enumerate().take(node.matrices).filter(|(_, offsets)| !offsets.is_empty())
        {
            let summed = self.summer.channel_sums(input.data, offsets, sums.columns)?;
            let rows = match &summed {
                Some(blocks) => Rows::Summed(offsets.len(), blocks),
                None => Rows::Data(input.data, offsets),
            };
            if let Some(channel) = accumulate(sums, matrix, rows) {
                return Err(ModelError::ActivationNotFinite { tensor: node.weight.to_owned(), channel }.into());
            }
        }
        Ok(())
    }

    /// Keeps one row for each wanted position: of the several that a token may have (experts, heads), another one each time.
    fn keep_rows(&mut self, index: usize, node: &Node<'_>, input: &Capture<'_>) {
        let wanted: Vec<(usize, usize)> = self.wanted_rows().collect();
        let entry = &mut self.entries[index];
        for (turn, position) in wanted {
            let (matrix, offset) = input.row_of_token(node, position, turn);
            entry.rows.push(matrix as u32, input.row(offset));
            entry.turns.push(turn as u32);
        }
    }
}
