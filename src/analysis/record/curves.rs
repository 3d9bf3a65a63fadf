//! Long arrays of chosen groups and tensors.

use serde::{Deserialize, Serialize};

use super::Step;

/// Counts in bins of equal width: bin i holds `low + i·width <= v < low + (i+1)·width`, the last one its upper end too.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Histogram {
    /// Lower end.
    pub low: f32,
    /// Upper end.
    pub high: f32,
    /// Counts.
    pub counts: Vec<u64>,
    /// Values below `low`.
    pub below: u64,
    /// Values above `high`.
    pub above: u64,
}

/// Curves of one input group.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GroupDetail {
    /// The group ([`super::GroupRow::key`]).
    pub key: String,
    /// Its channels, in their own order.
    pub channels: Option<ChannelCurves>,
    /// The same quantities, each sorted by itself, largest first.
    pub sorted: Option<SortedCurves>,
    /// Block maxima after each step, in the order [`Step::ALL`].
    pub block_maxima: Vec<BlockMaxima>,
    /// Relative output error at each exponent of AWQ's grid.
    pub alpha_curve: Vec<AlphaPoint>,
}

/// Channels of a group. Where there are more than [`CHANNELS`](super::CHANNELS), each point stands for `bucket` neighbours, the one with the largest E\[x²].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ChannelCurves {
    /// Neighbours for which one point stands.
    pub bucket: u32,
    /// The channel of each point.
    pub channel: Vec<u32>,
    /// E|x|; empty if not measured.
    pub mean_abs: Vec<f32>,
    /// E\[x²].
    pub mean_sq: Vec<f32>,
    /// max|x|; empty if not measured.
    pub abs_max: Vec<f32>,
    /// E\[x]; empty if not measured.
    pub mean: Vec<f32>,
    /// Σ over the group's weights of the channel: ‖w_j‖².
    pub weight_sq: Vec<f32>,
    /// The channel scale; empty if unscaled.
    pub scale: Vec<f32>,
    /// The place of the channel after ordering; empty if the order is left as it is.
    pub place: Vec<u32>,
}

/// Sorted values at evenly spread ranks, the first and the last included.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SortedCurves {
    /// The ranks, from 0 (the largest).
    pub rank: Vec<u32>,
    /// E|x|; empty if not measured.
    pub mean_abs: Vec<f32>,
    /// E\[x²].
    pub mean_sq: Vec<f32>,
    /// max|x|; empty if not measured.
    pub abs_max: Vec<f32>,
}

/// Distributions of block maxima after one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockMaxima {
    /// Which step.
    pub step: Step,
    /// max|x| of the blocks of 256, in units of the step's rms; the range is the same for all steps of a group.
    pub of_256: Histogram,
    /// max|x| of the blocks of 32.
    pub of_32: Histogram,
}

/// One exponent of AWQ's grid.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct AlphaPoint {
    /// α.
    pub alpha: f32,
    /// Relative output error, quantised, in the order that this scale would get.
    pub error: f32,
    /// The same with exact activations.
    pub error_weights_only: f32,
}

/// Curves of one TCQ4 tensor.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TensorDetail {
    /// The tensor.
    pub name: String,
    /// e in steps, from −1 to 1.
    pub rounding: Histogram,
    /// Neighbouring channels for which one point of the curves below stands (their mean).
    pub bucket: u32,
    /// E\[x_j²] of the points, in the channels' own order; empty if not measured.
    pub mean_sq: Vec<f32>,
    /// m_j, see [`Split`](super::Split); empty if not measured.
    pub channel_mse: Vec<f32>,
    /// Mean over n of ΔW_nj, signed.
    pub delta_mean: Vec<f32>,
    /// Mean over n of |ΔW_nj|.
    pub delta_mean_abs: Vec<f32>,
}
