//! The record of an analysis: everything that was measured, with its definition and unit, for people and programs alike.
//!
//! Summary rows exist for every layer, so their size grows by some hundred bytes a tensor; long arrays stand only in the details of chosen
//! groups, and are cut to [`CHANNELS`] points. A number that could not be measured is absent (`None`), and [`Analysis::unmeasured`] says why.
//!
//! Words: a *group* is the tensors that read one activation `x` (columns = channels of `x`). *Relative error* is always a ratio of sums of
//! squares, Σ(a − b)² / Σb², never a root and never a percentage. *Share* is a ratio in 0..=1. Percentiles interpolate linearly.
//! Curves carry five significant digits.

mod curves;
mod gates;
mod groups;
mod tensors;

use serde::{Deserialize, Serialize};

pub use curves::{AlphaPoint, BlockMaxima, ChannelCurves, GroupDetail, Histogram, SortedCurves, TensorDetail};
pub use gates::{GateChannels, GateDetail, GateRow, Moments, SaliencyRow};
pub use groups::{AlphaRow, ExpertRow, GroupRow, Importance, Shares, Similarity, Spread, Step, StepRow};
pub use tensors::{Errors, Magnitude, MeasuredOn, OutputErrors, Rounding, Split, SplitOutput, TensorRow, Test};

/// The version of this record; it grows when a field changes its meaning or goes away, not when one is added.
pub const VERSION: u32 = 1;

/// Points of a channel curve in the details, at most.
pub const CHANNELS: usize = 1024;

/// Layers along one side of a similarity matrix, at most.
pub const MATRIX: usize = 64;

/// An analysis of one model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Analysis {
    /// [`VERSION`].
    pub version: u32,
    /// The model.
    pub model: ModelFacts,
    /// What was assumed and how much was sampled.
    pub setup: Setup,
    /// What could not be measured, and why.
    pub unmeasured: Vec<Unmeasured>,
    /// What the user should know, in sentences.
    pub notices: Vec<String>,
    /// Every input group of a TCQ4 tensor, in the order of the layers.
    pub groups: Vec<GroupRow>,
    /// Every matrix of the model (tensors of two and three dimensions), in the order of the file.
    pub tensors: Vec<TensorRow>,
    /// Every tensor whose output enters an activation function.
    pub gates: Vec<GateRow>,
    /// Every layer with experts.
    pub experts: Vec<ExpertRow>,
    /// How alike the layers' inputs are, one matrix for each kind of group.
    pub similarity: Vec<Similarity>,
    /// The signed rounding error of all measured TCQ4 weights together, in steps.
    pub rounding_histogram: Option<Histogram>,
    /// Curves of the chosen groups.
    pub group_details: Vec<GroupDetail>,
    /// Curves of the chosen TCQ4 tensors.
    pub tensor_details: Vec<TensorDetail>,
    /// Channels of the chosen gates.
    pub gate_details: Vec<GateDetail>,
}

/// Facts about the model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelFacts {
    /// The file (its first shard), as it was given.
    pub path: String,
    /// `general.name`; empty if the file does not say.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Layers.
    pub layers: u32,
    /// Experts of a layer; 0 for dense models.
    pub experts: u32,
    /// Number of weights in all tensors.
    pub weights: u64,
    /// Bytes of all tensors in the source.
    pub source_bytes: u64,
    /// Bytes of all tensors in the converted file, or as planned.
    pub bytes: u64,
    /// The converted file, if one was given.
    pub converted: Option<String>,
}

/// What was assumed and how much was sampled.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Setup {
    /// Where the statistics come from: a path, or `measured in this run`; none without statistics.
    pub statistics: Option<String>,
    /// The calibration texts.
    pub datasets: Vec<String>,
    /// Chunks of text behind the sums.
    pub chunks: u32,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// Whether the sample rows come from text that the sums have not seen.
    pub rows_held_out: bool,
    /// Whether the statistics hold E|x|, E\[x] and max|x| (a file of llama-imatrix has only E\[x²]).
    pub complete: bool,
    /// The activation path that choices and curves assume: `none`, `int8`, `int4`, `int4-group32`, `int4-fork`.
    pub activations: String,
    /// The channel scales: `none`, `closed-form`, `awq`; `file` where they were read from the converted file.
    pub scales: String,
    /// The order of channels: `none`, `zigzag`, …; `file` where it was read from the converted file.
    pub order: String,
    /// The tile encoder: `default` or `parity`; `file` where weights were decoded from the converted file.
    pub encoder: String,
    /// Output rows of each matrix that rounding, split and output errors look at, at most.
    pub output_rows: u32,
    /// Sample rows (tokens) of each group that take part, at most.
    pub sample_rows: u32,
    /// Experts of each stack that errors look at, at most (those with most sample rows).
    pub sample_experts: u32,
    /// τ: below it a pre-activation counts as dead.
    pub tau: f32,
    /// The least number of tokens an expert must have seen, if one was asked for.
    pub min_expert_tokens: Option<u64>,
    /// The least share of an even split (1 / experts) that an expert must have seen, if one was asked for.
    pub min_expert_share: Option<f32>,
}

/// A part of the analysis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// Channel importance.
    Importance,
    /// Activations before and after each step.
    Steps,
    /// Error over AWQ's exponent.
    Alpha,
    /// Rounding of the weights.
    Rounding,
    /// Error by importance of the channels.
    Split,
    /// Error of the outputs.
    Output,
    /// Pre- and post-activations.
    Gates,
    /// Similarity of layers.
    Similarity,
    /// Expert coverage.
    Experts,
}

/// A section that could not be measured, for the model or for some subjects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmeasured {
    /// Which part.
    pub section: Section,
    /// Why, in words.
    pub reason: String,
    /// The groups or tensors concerned, at most the first eight by name; empty if it concerns the whole model.
    pub subjects: Vec<String>,
    /// How many there are.
    pub count: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_from_json() {
        let analysis = Analysis {
            version: VERSION,
            groups: vec![GroupRow { key: "blk.0.ffn_down".into(), layer: Some(0), ..GroupRow::default() }],
            unmeasured: vec![Unmeasured {
                section: Section::Steps,
                reason: "no sample rows".into(),
                subjects: Vec::new(),
                count: 1,
            }],
            ..Analysis::default()
        };
        let json = serde_json::to_string(&analysis).unwrap();
        assert!(json.contains(r#""section":"steps""#));
        assert_eq!(serde_json::from_str::<Analysis>(&json).unwrap(), analysis);
    }
}
