//! Tensors before an activation function: rows and channels.

use serde::{Deserialize, Serialize};

use super::Histogram;

/// A tensor whose output Z = X·Wᵀ + b enters an activation function f, measured on sample rows with the model's own weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GateRow {
    /// The tensor.
    pub tensor: String,
    /// The layer.
    pub layer: u32,
    /// f: `silu`, `gelu`, `relu`, `relu2`, or `unknown` (then nothing is said about post-activations).
    pub function: String,
    /// Sample rows; of experts, the rows of the experts measured.
    pub sample_rows: u32,
    /// Output channels measured (of all matrices measured).
    pub channels: u32,
    /// Experts measured, those with most rows; 1 for a dense tensor.
    pub matrices: u32,
    /// All of Z.
    pub pre: Moments,
    /// All of f(Z); none if f is unknown.
    pub post: Option<Moments>,
    /// Share of Z < 0.
    pub negative_share: f32,
    /// Share of Z < τ.
    pub below_tau_share: f32,
    /// Channels with a mean below 0.
    pub negative_channels: u32,
    /// Channels with a mean below 0 and a standard deviation above 2.
    pub volatile_channels: u32,
    /// Dead: channels with a mean below τ.
    pub dead_channels: u32,
    /// Risky: dead, and mean + 3σ > τ: rounding can wake them.
    pub risky_channels: u32,
    /// The 75th percentile of mean|w| over the channels.
    pub high_weight: f32,
    /// Critical: risky, and mean|w| above `high_weight`.
    pub critical_channels: u32,
    /// Suppression: mean|f(Z)| / mean|Z| over the channels with a negative mean; none if there are none.
    pub suppression: Option<f32>,
    /// Spearman's rank correlation of the two importances of output channels in [`GateChannels`]; none if one is constant.
    pub spearman_awq_praq: Option<f32>,
}

/// Moments of a set of values.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Moments {
    /// Mean.
    pub mean: f32,
    /// Standard deviation (n).
    pub std: f32,
    /// Smallest.
    pub min: f32,
    /// Largest.
    pub max: f32,
}

/// Channels and distributions of one gate.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GateDetail {
    /// The tensor.
    pub tensor: String,
    /// Z, 100 bins over its range.
    pub pre: Histogram,
    /// f(Z), 100 bins over its range; none if f is unknown.
    pub post: Option<Histogram>,
    /// One entry for each output channel of a gate that was chosen by layer or name, otherwise for the [`CHANNELS`](super::CHANNELS) most
    /// important by `praq_importance`; ascending by channel.
    pub channels: GateChannels,
    /// The 10 channels with the largest E|Z| and how their gradient is spread over their weights; empty unless f is SiLU.
    pub saliency: Vec<SaliencyRow>,
}

/// Output channels of a gate, a column a quantity.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GateChannels {
    /// How many channels the gate has; the columns may hold fewer.
    pub total: u32,
    /// The expert; empty for dense tensors.
    pub matrix: Vec<u32>,
    /// The channel within its matrix.
    pub channel: Vec<u32>,
    /// Mean of Z_n.
    pub mean: Vec<f32>,
    /// Standard deviation (n) of Z_n.
    pub std: Vec<f32>,
    /// Smallest.
    pub min: Vec<f32>,
    /// Largest.
    pub max: Vec<f32>,
    /// 5th percentile.
    pub p05: Vec<f32>,
    /// 25th percentile.
    pub p25: Vec<f32>,
    /// Median.
    pub p50: Vec<f32>,
    /// 75th percentile.
    pub p75: Vec<f32>,
    /// 95th percentile.
    pub p95: Vec<f32>,
    /// Share of Z_n < 0.
    pub negative_ratio: Vec<f32>,
    /// Share of Z_n < τ.
    pub dead_ratio: Vec<f32>,
    /// mean|w_n|.
    pub weight_magnitude: Vec<f32>,
    /// E|Z_n|.
    pub awq_importance: Vec<f32>,
    /// FastRPRAQ: risk·magnitude with risk = 1/(1+exp(−3·(μ + 3σ + noise − τ))), noise = 0.2·mean|X|·mean|w_n|, magnitude = E|Z_n| + σ.
    pub praq_importance: Vec<f32>,
    /// `awq_importance` mapped linearly onto 0..=1 over all channels; 0 if it is constant.
    pub awq_normalized: Vec<f32>,
    /// `praq_importance` likewise.
    pub praq_normalized: Vec<f32>,
    /// Rank by `awq_importance`, 1 is the largest, equals share the mean of their ranks.
    pub awq_rank: Vec<f32>,
    /// Rank by `praq_importance`.
    pub praq_rank: Vec<f32>,
    /// Bits: 1 dead, 2 risky, 4 critical.
    pub flags: Vec<u8>,
}

/// One salient output channel.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SaliencyRow {
    /// The expert; 0 for dense tensors.
    pub matrix: u32,
    /// The channel.
    pub channel: u32,
    /// E|Z_n|.
    pub saliency: f32,
    /// E\[(SiLU'(z_n)·x_j)²] over the weights j, sorted, largest first, at most 256 evenly spread ranks.
    pub gradient: Vec<f32>,
    /// The rank of the knee of the whole curve's first half (largest distance from its chord).
    pub knee: u32,
    /// The smallest and largest weight of the channel.
    pub weight_range: [f32; 2],
}
