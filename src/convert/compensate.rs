//! Tensors whose codes are chosen by their effect on the output: what they are chosen by, and what came of it. The choosing is in
//! `quant::rounding`; in which batches second moments are measured, in `batches`.

use std::ops::AddAssign;

use serde::Serialize;

use super::batches::Curvatures;
use super::sequential::Sequential;
use crate::Result;
use crate::calib::{ChannelStats, InputMoments, MomentsRequest, Statistics};
use crate::gguf::TensorInfo;
use crate::quant::rounding::{Curvature, Damping, Flipped, Rounded, Rounding, rotated_mean, unprotected};
use crate::quant::{Activations, Transform};
use crate::tcq::Codec;

/// Gives second moments: E[x xᵀ] of what enters a weight, in the basis in which the model has it.
pub trait SecondMoments: Sync {
    /// The second moments that are asked for, in this order; `None` for inputs that were not seen. What is given may be more than what is asked for:
    /// all channels instead of blocks, sums of each expert or of all.
    ///
    /// # Errors
    /// What keeps the model from running.
    fn measure(&self, requests: &[MomentsRequest]) -> Result<Vec<Option<InputMoments>>>;
}

/// The rounding of activations that codes are to make up for.
#[derive(Clone, Copy)]
pub struct Noise<'a> {
    /// Has the sample rows that it is measured on.
    pub statistics: &'a Statistics,
    /// How the runtime rounds.
    pub path: Activations,
    /// How much of the shrinking that it asks for is done: 0 to 1.
    pub share: f32,
}

/// How codes are chosen by their effect on the output.
pub struct Compensation<'a> {
    /// Where the second moments come from.
    pub moments: &'a dyn SecondMoments,
    /// The moves.
    pub rounding: Rounding,
    /// What is added to the diagonal of a second moment, as a share of its mean.
    pub damp: f64,
    /// Whether columns with the largest second moments are rounded first.
    pub act_order: bool,
    /// The rounding of activations, if codes are to make up for it (GPTAQ).
    pub noise: Option<Noise<'a>>,
    /// Bytes that second moments and the work on one of them may take at a time.
    pub memory: u64,
    /// Whether later layers are measured behind quantised ones.
    pub sequential: Option<Sequential<'a>>,
}

/// How codes are chosen.
pub enum Codes<'a> {
    /// The nearest.
    Nearest,
    /// The nearest, but for flips that keep the mean of each output; by the means of these statistics.
    Greedy(&'a Statistics),
    /// By the second moments of the inputs.
    Gptq(Compensation<'a>),
}

/// What an output error is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The outputs' means over the calibration text.
    Mean,
    /// The outputs over the calibration text.
    SecondMoment,
}

/// The squared output error of one tensor, relative to its squared output.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OutputError {
    /// What it is measured on.
    pub measure: Measure,
    /// With the nearest codes.
    pub nearest: f64,
    /// With the codes that were written.
    pub compensated: f64,
    /// Whether the rounding of activations was made up for; the errors are then against shrunken weights.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub noise: bool,
    /// How the second moment was made positive definite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<Damping>,
}

/// What codes of one tensor are chosen by.
pub(super) enum By<'a> {
    Curvature(&'a Curvatures, Rounding),
    Means(&'a Means),
}

impl By<'_> {
    /// The mean square of what each rotated column is multiplied with, where second moments are known; 1 in blocks without them.
    pub(super) fn importance(&self) -> Option<Vec<f32>> {
        let Self::Curvature(curvatures, _) = self else { return None };
        let of = |(width, curvature): &(usize, Option<Curvature>)| match curvature {
            Some(curvature) => curvature.importance(),
            None => vec![1.0; *width],
        };
        Some(curvatures.blocks.iter().flat_map(of).collect())
    }
}

/// Mean inputs in the basis of a tensor's rotated weights, with the columns whose codes may be flipped, for each of its matrices.
pub(super) struct Means {
    matrices: Vec<(Vec<f32>, Vec<bool>)>,
    /// Rows of a matrix.
    rows: u64,
}

impl Means {
    /// Those of a tensor with statistics of its inputs; `None` where no means were measured.
    pub(super) fn new(
        tensor: &TensorInfo,
        stats: &ChannelStats,
        transform: Option<&Transform>,
        codec: Codec,
    ) -> Option<Self> {
        let identity = Transform::default();
        let mean = |matrix: usize| {
            let sums = &stats.sum[matrix * stats.columns..][..stats.columns];
            let count = stats.counts[matrix].max(1) as f64;
            let mean: Vec<f32> = sums.iter().map(|sum| (sum / count) as f32).collect();
            let mean = rotated_mean(&mean, transform.unwrap_or(&identity), codec);
            let open = unprotected(&mean);
            (mean, open)
        };
        let rows = tensor.rows() / tensor.matrices();
        (stats.complete && stats.matrices as u64 == tensor.matrices())
            .then(|| Self { matrices: (0..stats.matrices).map(mean).collect(), rows })
    }

    /// The mean and the open columns for a row, counted over all matrices.
    pub(super) fn of_row(&self, row: u64) -> (&[f32], &[bool]) {
        let (mean, open) = &self.matrices[(row / self.rows) as usize];
        (mean, open)
    }
}

impl AddAssign for OutputSums {
    fn add_assign(&mut self, other: Self) {
        self.energy += other.energy;
        self.nearest += other.nearest;
        self.compensated += other.compensated;
        self.measure = self.measure.or(other.measure);
        self.noise |= other.noise;
        self.damping = self.damping.or(other.damping);
    }
}

/// Sums of eᵀHe over the rows of a tensor.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OutputSums {
    /// With the weights in place of their errors.
    pub(super) energy: f64,
    pub(super) nearest: f64,
    pub(super) compensated: f64,
    pub(super) measure: Option<Measure>,
    pub(super) noise: bool,
    pub(super) damping: Option<Damping>,
}

impl OutputSums {
    /// Adds those of further rows that were rounded.
    pub(super) fn add(&mut self, rounded: &Rounded, curvature: &Curvature) {
        let Rounded { energy, nearest, compensated, .. } = *rounded;
        let measure = Some(Measure::SecondMoment);
        let (noise, damping) = (curvature.has_noise(), Some(curvature.damping()));
        *self += Self { energy, nearest, compensated, measure, noise, damping };
    }

    /// Adds those of a further row whose codes were flipped.
    pub(super) fn add_flipped(&mut self, flipped: &Flipped) {
        let [energy, nearest, compensated] = [flipped.output, flipped.before, flipped.after].map(|value| value * value);
        *self += Self { energy, nearest, compensated, measure: Some(Measure::Mean), noise: false, damping: None };
    }

    /// The errors relative to the output; `None` for a tensor that was not compensated.
    pub(super) fn relative(&self) -> Option<OutputError> {
        let measure = self.measure?;
        let of = |sum: f64| if self.energy > 0.0 { sum / self.energy } else { 0.0 };
        let (nearest, compensated) = (of(self.nearest), of(self.compensated));
        Some(OutputError { measure, nearest, compensated, noise: self.noise, damping: self.damping })
    }
}
