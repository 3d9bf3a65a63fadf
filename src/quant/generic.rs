//! Norms of architectures without a table, proved by what calibration saw.
//!
//! A group gets the norm before it for its maker only if all of this holds: every tensor of the block has a known role; the graph fed exactly the
//! group's tensors with one input; and on every sample row that input, divided by the gain of one norm of the block and of no other, has the
//! mean square 1. Norms without sample rows, or fused into something else, are left alone.

use std::collections::BTreeSet;

use super::evidence::Weights;
use crate::calib::{SampleRows, Statistics};
use crate::error::Result;
use crate::model::{Axis, InputGroup, Kind, Producer, Role, Span, TensorName};

/// How far the mean square may be from 1 on any row (a norm adds a small constant under the root).
const MEAN_SQ: f64 = 0.01;
/// Fewer sample rows than this prove nothing.
const ROWS: usize = 16;

/// Names the norms behind the groups for which the proof succeeds; returns their keys.
pub(super) fn prove_norms(
    groups: &mut [InputGroup],
    weights: Weights<'_>,
    statistics: &Statistics,
) -> Result<Vec<String>> {
    let mut proved = Vec::new();
    let mut taken = BTreeSet::new();
    for group in groups.iter_mut().filter(|group| matches!(group.producer, Producer::Unknown { .. })) {
        let block = group.readers.first().and_then(|name| TensorName::parse(name).block);
        let (Some(block), Some(rows)) = (block, shared_input(group, statistics)) else { continue };
        if !all_known(weights, block) {
            continue;
        }
        let mut found = Vec::new();
        for spans in norms(weights, block, group.columns) {
            if is_norm_output(weights, &spans, rows)? {
                found.push(spans);
            }
        }
        if let [spans] = &found[..]
            && taken.insert(spans[0].tensor.clone())
        {
            group.producer = Producer::Norm(spans.clone());
            proved.push(group.key.clone());
        }
    }
    Ok(proved)
}

/// The sample rows of a group, if the graph fed its tensors, and no other, with one input.
fn shared_input<'a>(group: &InputGroup, statistics: &'a Statistics) -> Option<&'a SampleRows> {
    let first = group.readers.first()?;
    let seen: BTreeSet<&String> = statistics.group_of(first).iter().collect();
    let rows = statistics.entries.get(first)?.rows.as_deref()?;
    (seen == group.readers.iter().collect() && rows.len() >= ROWS && rows.columns as u64 == group.columns)
        .then_some(rows)
}

/// Whether every tensor of a block has a known role.
fn all_known(weights: Weights<'_>, block: u32) -> bool {
    let mut names = weights
        .source
        .tensors()
        .iter()
        .map(|tensor| TensorName::parse(&tensor.name))
        .filter(|name| name.block == Some(block));
    names.all(|name| name.role != Role::Unknown && name.kind != Kind::Other)
}

/// The norms of a block that could stand before the group: gain, and bias if there is one.
fn norms(weights: Weights<'_>, block: u32, columns: u64) -> Vec<Vec<Span>> {
    let fits = |name: &String| {
        weights.source.tensor(name).is_some_and(|tensor| tensor.columns() == columns && tensor.rows() == 1)
    };
    let spans = |norm: &str| {
        let names = ["weight", "bias"].map(|suffix| format!("blk.{block}.{norm}.{suffix}"));
        let spans =
            names.into_iter().filter(fits).map(|tensor| Span { tensor, axis: Axis::Columns, first: 0, len: columns });
        Some(spans.collect::<Vec<_>>())
            .filter(|spans| spans.first().is_some_and(|span| span.tensor.ends_with(".weight")))
    };
    ["attn_norm", "ffn_norm", "post_attention_norm"].into_iter().filter_map(spans).collect()
}

/// Whether every row is gain·u + bias with a mean square of u of 1.
fn is_norm_output(weights: Weights<'_>, spans: &[Span], rows: &SampleRows) -> Result<bool> {
    let gain = weights.vector(&spans[0])?;
    let bias = spans.get(1).map_or_else(|| Ok(vec![0.0; gain.len()]), |span| weights.vector(span))?;
    if gain.contains(&0.0) {
        return Ok(false);
    }
    let mean_sq = |row: &[f32]| {
        let terms = row.iter().zip(gain.iter().zip(&bias)).map(|(&x, (g, b))| ((f64::from(x) - b) / g).powi(2));
        terms.sum::<f64>() / gain.len() as f64
    };
    Ok(rows.iter().all(|(_, row)| (mean_sq(row) - 1.0).abs() <= MEAN_SQ))
}
