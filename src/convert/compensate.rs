//! Tensors whose codes are chosen by their effect on the output: what they are chosen by, and in which batches second moments are measured so that
//! memory suffices. The choosing is in `quant::rounding`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::sync::Arc;

use serde::Serialize;

use super::plan::Conversion;
use crate::Result;
use crate::calib::{ChannelStats, Hessian, Statistics};
use crate::gguf::{Source, TensorInfo};
use crate::model::{Arch, Shape, groups};
use crate::quant::rounding::{
    ActivationNoise, Curvature, Damping, Flipped, Rounded, Rounding, rotated, rotated_mean, unprotected,
};
use crate::quant::{Activations, Transform};
use crate::tcq::Codec;

/// Measures second moments: E[x xᵀ] of what enters a weight, in the basis in which the model has it.
pub trait SecondMoments: Sync {
    /// The second moments of the inputs of these weights, as far as they were seen; weights with the same input may share one.
    ///
    /// # Errors
    /// What keeps the model from running.
    fn measure(&self, weights: &BTreeSet<String>) -> Result<BTreeMap<String, Arc<Hessian>>>;
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
    /// Bytes that second moments may take at a time; a single input may take more.
    pub memory: u64,
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
    Curvature(&'a Curvature, Rounding),
    Means(&'a Means),
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

/// Tensors with one input, by their indices in the plan.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    pub(super) tensors: Vec<usize>,
    pub(super) columns: u64,
}

/// Groups whose second moments are measured in one run of the model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Batch {
    pub(super) groups: Vec<Group>,
}

impl Batch {
    /// The tensors of all groups.
    pub(super) fn tensors(&self) -> impl Iterator<Item = usize> {
        self.groups.iter().flat_map(|group| group.tensors.iter().copied())
    }

    /// Measures the second moments of the inputs of all its tensors, by name.
    pub(super) fn measure(
        &self,
        plan: &Conversion,
        compensation: &Compensation<'_>,
    ) -> Result<BTreeMap<String, Arc<Hessian>>> {
        compensation.moments.measure(&self.tensors().map(|index| plan.tensors[index].name.clone()).collect())
    }
}

impl Group {
    /// Bytes of the second moment: its upper triangle in f32.
    fn bytes(&self) -> u64 {
        self.columns * self.columns / 2 * size_of::<f32>() as u64
    }

    /// What its tensors are rounded by; `None` where the input was not seen, or its second moment is of no use. Takes the second moments of its
    /// tensors out of `moments`.
    pub(super) fn curvature(
        &self,
        plan: &Conversion,
        moments: &mut BTreeMap<String, Arc<Hessian>>,
        transform: Option<&Transform>,
        (codec, compensation): (Codec, &Compensation<'_>),
    ) -> Option<Curvature> {
        let found: Vec<_> = self.tensors.iter().map(|&index| moments.remove(&plan.tensors[index].name)).collect();
        let hessian = found.into_iter().flatten().next()?;
        let (columns, mean) = (hessian.columns(), hessian.mean());
        drop(hessian);
        let transform = transform.map_or_else(|| Cow::Owned(Transform::default()), Cow::Borrowed);
        let hessian = rotated(&mean, columns, &transform, codec);
        drop(mean);
        let Compensation { damp, act_order, .. } = *compensation;
        match self.noise(plan, &transform, codec, compensation) {
            Some((noise, share)) => Curvature::with_noise(hessian, &noise, share, damp, act_order),
            None => Curvature::new(&hessian, columns, damp, act_order),
        }
    }

    /// The noise of the activations on the sample rows of this input, where it is to be made up for and rows were kept.
    fn noise(
        &self,
        plan: &Conversion,
        transform: &Transform,
        codec: Codec,
        compensation: &Compensation<'_>,
    ) -> Option<(ActivationNoise, f32)> {
        let noise = compensation.noise?;
        let entry = |&index: &usize| noise.statistics.entries.get(&plan.tensors[index].name);
        let rows = self.tensors.iter().find_map(|index| entry(index)?.rows.as_ref())?;
        Some((ActivationNoise::measure(rows, transform, noise.path, codec)?, noise.share))
    }
}

/// Bytes of work on one second moment, for each of its elements: the mean, its transform and the matrices that are made of it, some in f64.
const WORK: u64 = 28;

/// What compensation costs: runs of the text, and bytes of memory beside those of [`super::working_memory`].
pub fn compensation_cost(source: &Source, plan: &Conversion, memory: u64) -> (usize, u64) {
    let batches = batches(source, plan, memory);
    let held = batches.iter().map(|batch| batch.groups.iter().map(Group::bytes).sum::<u64>()).max().unwrap_or(0);
    let widest = batches.iter().flat_map(|batch| &batch.groups).map(|group| group.columns).max().unwrap_or(0);
    (batches.len(), held + WORK * widest * widest)
}

/// The TCQ4 tensors of a plan by their inputs, in the order of the model.
pub(super) fn groups_of(source: &Source, plan: &Conversion) -> Vec<Group> {
    let wanted = plan.tensors.iter().enumerate().filter(|(_, tensor)| tensor.is_tcq4());
    let mut index: BTreeMap<&str, usize> = wanted.map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    let shapes = source.tensors().iter().map(|tensor| Shape { name: &tensor.name, dims: &tensor.dims });
    let mut found: Vec<Group> = groups(shapes, &Arch::from_metadata(source.metadata()))
        .into_iter()
        .map(|group| {
            let tensors = group.readers.iter().filter_map(|name| index.remove(name.as_str())).collect();
            Group { tensors, columns: group.columns }
        })
        .filter(|group| !group.tensors.is_empty())
        .collect();
    found.sort_by_key(|group| group.tensors[0]);
    found
}

/// Cuts the TCQ4 tensors of a plan into batches of consecutive inputs whose second moments fit into `memory` together.
pub(super) fn batches(source: &Source, plan: &Conversion, memory: u64) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut used = 0;
    for group in groups_of(source, plan) {
        used += group.bytes();
        match batches.last_mut() {
            Some(batch) if used <= memory => batch.groups.push(group),
            _ => {
                used = group.bytes();
                batches.push(Batch { groups: vec![group] });
            }
        }
    }
    batches
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
    energy: f64,
    nearest: f64,
    compensated: f64,
    measure: Option<Measure>,
    noise: bool,
    damping: Option<Damping>,
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
