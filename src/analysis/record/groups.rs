//! Rows of input groups and of layers: importance, steps, scales, similarity, experts.

use serde::{Deserialize, Serialize};

/// One input group.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GroupRow {
    /// Its name, for instance `blk.3.ffn_down`.
    pub key: String,
    /// The layer; none outside the layers (the output head).
    pub layer: Option<u32>,
    /// The name without the layer, for instance `ffn_down`: groups of one kind are comparable.
    pub kind: String,
    /// The tensors that read the activation and become TCQ4.
    pub tensors: Vec<String>,
    /// Channels of the activation.
    pub columns: u32,
    /// Token rows behind the sums (routed rows, for experts); 0 if nothing was measured.
    pub rows_seen: u64,
    /// Sample rows that took part in steps, output errors and curves.
    pub sample_rows: u32,
    /// `statistics`, or `structure` where choices rest on an estimate from the weights.
    pub grounds: String,
    /// The smallest and largest channel scale `a` (x' = x·a); none if unscaled.
    pub scale_range: Option<[f32; 2]>,
    /// Why the group has no scale although one was wanted.
    pub unscaled: Option<String>,
    /// The order of its channels: `none`, `zigzag`, `rrs`, …
    pub order: String,
    /// `runtime` or `folded`; none if the order is left as it is.
    pub applied: Option<String>,
    /// Why the order that was wanted was not taken.
    pub unordered: Option<String>,
    /// Channel importance.
    pub importance: Option<Importance>,
    /// The activation after each step, in the order [`Step::ALL`].
    pub steps: Vec<StepRow>,
    /// Error with and without scale, and over AWQ's exponent; chosen groups only.
    pub alpha: Option<AlphaRow>,
    /// Cosine of E\[x²] with that of the previous layer's group of this kind.
    pub similarity_previous: Option<f32>,
}

/// How the importance of channels is spread. "Top n" are the n channels with the largest value; a share is their part of the sum over all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Importance {
    /// Shares of Σ_j E|x_j|; none if only E\[x²] is known.
    pub mean_abs: Option<Shares>,
    /// Shares of Σ_j E\[x_j²].
    pub mean_sq: Shares,
    /// Spearman's rank correlation of E|x| and E\[x²] over the channels.
    pub spearman_abs_sq: Option<f32>,
    /// Spearman's rank correlation of max|x| and E\[x²].
    pub spearman_max_sq: Option<f32>,
    /// Spearman's rank correlation of |E\[x]| and E\[x²].
    pub spearman_mean_sq: Option<f32>,
    /// Mean over the channels of E\[x], in units of the activation.
    pub signed_mean: Option<f32>,
    /// Σ_j E\[x_j]² / Σ_j E\[x_j²]: how much of the energy is a constant offset.
    pub offset_share: Option<f32>,
    /// Root of the mean over channels of E\[x²], in units of the activation.
    pub rms: f32,
    /// max_j E\[x_j²] over the median of E\[x²]; none if the median is zero.
    pub peak_to_median: Option<f32>,
    /// Channels that were zero in every row.
    pub zero_channels: u32,
}

/// The share of a sum that its largest terms make up. Where there are fewer channels than n, all of them (1.0).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Shares {
    /// The largest channel.
    pub top_1: f32,
    /// The 10 largest.
    pub top_10: f32,
    /// The 100 largest.
    pub top_100: f32,
    /// The largest 1 % of the channels (at least one).
    pub top_1_percent: f32,
    /// The largest 10 % of the channels (at least one).
    pub top_10_percent: f32,
    /// The larger half of the channels (at least one).
    pub top_50_percent: f32,
}

/// A step of the preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// As the model computes it.
    Plain,
    /// Times the channel scale.
    Scaled,
    /// Scaled, then ordered.
    Ordered,
    /// Scaled, ordered, rotated (FWHT of every 256): what the runtime rounds.
    Rotated,
    /// Rotated as the model computes it, neither scaled nor ordered: what the preparation is to be compared with.
    RotatedPlain,
}

impl Step {
    /// Every step, in the order of the rows.
    pub const ALL: [Step; 5] = [Step::Plain, Step::Scaled, Step::Ordered, Step::Rotated, Step::RotatedPlain];

    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Step::Plain => "plain",
            Step::Scaled => "scaled",
            Step::Ordered => "ordered",
            Step::Rotated => "rotated",
            Step::RotatedPlain => "rotated-plain",
        }
    }
}

/// The activation of a group after one step, over its sample rows. Blocks are runs of 256 or 32 channels of one row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Which step.
    pub step: Step,
    /// max|x| of the blocks of 256, in units of the step's rms over all rows.
    pub block_max_256: Spread,
    /// max|x| of the blocks of 32, in the same unit.
    pub block_max_32: Spread,
    /// Crest factor: mean over the blocks of 256 of max|x| / rms of that block; blocks of zeros are left out.
    pub crest_256: f32,
    /// The same for blocks of 32.
    pub crest_32: f32,
    /// Victims: share of the values other than 0 that `int4` (one scale for 256, 0.9·max/8 a step) rounds to 0.
    pub victims_256: f32,
    /// The same for `int4-group32` (one scale for 32, max/8 a step).
    pub victims_32: f32,
    /// Relative error of `int4`, of the values of this step.
    pub error_int4: f32,
    /// Relative error of `int4-group32`.
    pub error_int4_group32: f32,
    /// Relative error of `int8` (one scale max/127 for 32).
    pub error_int8: f32,
}

/// A distribution in five numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spread {
    /// Mean.
    pub mean: f32,
    /// 5th percentile.
    pub p05: f32,
    /// Median.
    pub p50: f32,
    /// 95th percentile.
    pub p95: f32,
    /// Largest.
    pub max: f32,
}

/// Output errors of a group for different scales, each in its own zig-zag (or chosen) order, rotated and rounded ([`super::Setup::activations`]).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AlphaRow {
    /// The exponent with the least error (the first of equals).
    pub best_alpha: f32,
    /// Relative output error there.
    pub best_error: f32,
    /// Relative output error without scales.
    pub error_unscaled: f32,
    /// Relative output error with the closed form.
    pub error_closed_form: f32,
}

/// Cosines between E\[x²] of the layers' groups of one kind.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Similarity {
    /// The kind of group ([`GroupRow::kind`]).
    pub kind: String,
    /// The layers along both sides, ascending; at most [`MATRIX`](super::MATRIX), evenly spread over those measured.
    pub layers: Vec<u32>,
    /// How many layers were measured.
    pub measured_layers: u32,
    /// Row after row, rounded to four decimals; symmetric, 1 on the diagonal.
    pub cosine: Vec<f32>,
}

/// How the calibration text was routed in one layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ExpertRow {
    /// The layer.
    pub layer: u32,
    /// The stack that was counted.
    pub tensor: String,
    /// Token rows of each expert.
    pub tokens: Vec<u64>,
    /// Their sum (tokens times experts used).
    pub total: u64,
    /// Experts below the thresholds of [`Setup`](super::Setup); without a threshold those that saw nothing.
    pub starved: Vec<u32>,
    /// The smallest share of an even split: min tokens · experts / total; none if nothing was routed.
    pub min_share: Option<f32>,
    /// The largest.
    pub max_share: Option<f32>,
    /// Entropy of the shares over that of an even split, 0..=1; none if nothing was routed.
    pub balance: Option<f32>,
}
