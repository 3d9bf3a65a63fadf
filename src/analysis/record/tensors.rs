//! Rows of matrices: type, errors, rounding, split by importance.

use serde::{Deserialize, Serialize};

/// One matrix of the model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TensorRow {
    /// Its name.
    pub name: String,
    /// The layer; none outside the layers.
    pub layer: Option<u32>,
    /// The name without the layer and without `.weight`, for instance `ffn_down`.
    pub kind: String,
    /// The key of its input group; none if it is in no group of TCQ4 tensors.
    pub group: Option<String>,
    /// Rows (outputs) of one matrix.
    pub rows: u64,
    /// Columns (inputs).
    pub columns: u64,
    /// Matrices: experts, or 1.
    pub matrices: u64,
    /// Number of weights.
    pub weights: u64,
    /// ggml's name of its type in the source.
    pub from: String,
    /// ggml's name of its type in the converted file, or as planned.
    pub to: String,
    /// Bits a weight there.
    pub bits: f32,
    /// Why it has that type, in words.
    pub reason: String,
    /// Whether the type is a substitution for one that does not fit.
    pub substituted: bool,
    /// What the errors below are measured on; none if they were not measured.
    pub measured_on: Option<MeasuredOn>,
    /// Relative error of the weights in the scaled and ordered domain, over the rows looked at.
    pub error_rel: Option<f32>,
    /// Relative errors of the outputs.
    pub output: Option<OutputErrors>,
    /// Rounding of the weights.
    pub rounding: Option<Rounding>,
    /// Error by importance of the channels.
    pub split: Option<Split>,
}

/// What the errors of a tensor are measured on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeasuredOn {
    /// `converted` if the weights were decoded from the converted file, `encoded` if they were encoded in memory.
    pub weights: String,
    /// Output rows looked at, over all matrices.
    pub output_rows: u32,
    /// Experts looked at; 1 for a dense tensor.
    pub matrices: u32,
    /// Sample rows (tokens) that were multiplied; 0 if there are none.
    pub sample_rows: u32,
}

/// Σ(y − y_q)² / Σy² over sample rows and the output rows looked at, y = x·wᵀ with the model's own weights and activations, in the model's
/// own units (a folded scale of the rows is undone).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct OutputErrors {
    /// Quantised weights, exact activations.
    pub weights_only: f32,
    /// Quantised weights, `int8` activations.
    pub int8: f32,
    /// Quantised weights, `int4` activations (one scale for 256).
    pub int4: f32,
    /// Quantised weights, `int4-group32` activations.
    pub int4_group32: f32,
    /// Quantised weights, the path of [`super::Setup::activations`].
    pub assumed: f32,
}

/// How the weights of a TCQ4 tensor were rounded, over the rows looked at. Rounding happens after scaling, ordering and rotation. With a step s
/// and offset z of its 32-group, weight y has the code q; e = q − (y − z)/s is the rounding error in steps, e·s in weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rounding {
    /// Weights looked at.
    pub weights: u64,
    /// e > 10⁻⁶.
    pub rounded_up: u64,
    /// e < −10⁻⁶.
    pub rounded_down: u64,
    /// The rest: |e| ≤ 10⁻⁶. Weights of a group without a step (s = 0) are counted in `no_step` and nowhere else.
    pub exact: u64,
    /// Weights whose group has the step 0.
    pub no_step: u64,
    /// Weights beyond the range of the codes: |e| > ½ + 10⁻⁶.
    pub clipped: u64,
    /// |e|, in steps.
    pub in_steps: Magnitude,
    /// |e·s|, in units of the scaled weight.
    pub in_weights: Magnitude,
    /// Mean of e, in steps: a bias of the rounding.
    pub signed_mean: f32,
}

/// A distribution of magnitudes.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Magnitude {
    /// Mean.
    pub mean: f32,
    /// Standard deviation (n).
    pub std: f32,
    /// Largest.
    pub max: f32,
    /// 90th percentile.
    pub p90: f32,
    /// 99th percentile.
    pub p99: f32,
}

/// The error of a tensor split by the importance of its channels: important are the ⌊K/2⌋ channels with the largest E\[x²] (the lower index
/// first among equals). ΔW is in the model's own units and order; N are the output rows looked at, T the sample rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Split {
    /// Important channels.
    pub important_channels: u32,
    /// The output error: X·ΔWᵀ restricted to the important channels, to the others, and whole.
    pub output: Option<SplitOutput>,
    /// ΔW of the important channels.
    pub important: Errors,
    /// ΔW of the others.
    pub other: Errors,
    /// Student's t-test (equal variances) of the signed ΔW, important against other.
    pub signed_t: Test,
    /// Kolmogorov-Smirnov test of |ΔW|.
    pub abs_ks: Test,
    /// t-test of the per-channel errors m_j, important against other; m_j = E\[x_j²]·mean_n ΔW_nj².
    pub channel_t: Test,
    /// Kolmogorov-Smirnov test of m_j.
    pub channel_ks: Test,
    /// Mean of m_j over the important channels / over the others; none if the latter is zero.
    pub channel_ratio: Option<f32>,
}

/// Errors of the outputs by part of the channels.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct SplitOutput {
    /// Mean over T and N of (X_I ΔW_Iᵀ)².
    pub mse_important: f32,
    /// The same of the other channels.
    pub mse_other: f32,
    /// Mean of (X ΔWᵀ)²; important + other + twice their covariance.
    pub mse_total: f32,
    /// Mean of X_I ΔW_Iᵀ, signed.
    pub mean_important: f32,
    /// The same of the other channels.
    pub mean_other: f32,
    /// Their sum.
    pub mean_total: f32,
    /// `mse_important / mse_other`; none if the latter is zero.
    pub ratio: Option<f32>,
}

/// Signed errors in brief.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Errors {
    /// Mean.
    pub mean: f32,
    /// Standard deviation (n).
    pub std: f32,
    /// Mean magnitude.
    pub mean_abs: f32,
    /// Smallest.
    pub min: f32,
    /// Largest.
    pub max: f32,
}

/// A test statistic and its two-sided p-value; both absent where the test is not defined (fewer than two values, no variance).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Test {
    /// t or D.
    pub statistic: Option<f32>,
    /// The p-value.
    pub p: Option<f32>,
}
