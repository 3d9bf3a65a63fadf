//! What is analysed: the model, its groups with what is known of each, and what happens to each tensor before it is encoded.

use std::collections::{BTreeMap, BTreeSet};

use super::importance::Pooled;
use super::sample::{Extent, rows_of};
use super::steps::Preparation;
use crate::calib::Statistics;
use crate::convert::{Conversion, PlannedTensor, Reason, is_tcq4, recorded_transforms};
use crate::error::{ConvertError, Error, Result};
use crate::gguf::{GgmlType, Source, TensorInfo};
use crate::model::{Arch, InputGroup, Shape, TensorName, groups};
use crate::quant::{GroupOutcome, Settings, Transform, prepare};
use crate::util::progress::Progress;

/// Weights that are read at a time.
const BLOCK: usize = 1 << 18;

/// The input of an analysis.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The model as it was before conversion.
    pub source: &'a Source,
    /// What becomes of its tensors.
    pub plan: &'a Conversion,
    /// How they are prepared and encoded; [`Settings::targets`] are the plan's TCQ4 tensors.
    pub settings: &'a Settings,
    /// What is known of its activations.
    pub statistics: Option<&'a Statistics>,
    /// The converted file, if its weights are to be looked at rather than those that would be encoded.
    pub converted: Option<&'a Source>,
}

/// One input group and what is known of it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) input: InputGroup,
    pub(super) layer: Option<u32>,
    /// Its tensors that are linear layers.
    pub(super) tensors: Vec<String>,
    pub(super) pooled: Option<Pooled>,
    /// What was chosen for it; none where it was read from the converted file.
    pub(super) outcome: Option<GroupOutcome>,
    /// The factors of its channels.
    pub(super) scale: Option<Vec<f32>>,
}

/// Everything that the parts of an analysis share.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) job: Job<'a>,
    pub(super) arch: Arch,
    pub(super) extent: Extent,
    /// Every input group of a linear layer.
    pub(super) groups: Vec<Group>,
    /// All groups of the model, whatever reads them.
    pub(super) all: Vec<InputGroup>,
    /// The tensors that are TCQ4.
    pub(super) tcq4: BTreeSet<String>,
    pub(super) notices: Vec<String>,
    transforms: BTreeMap<String, Transform>,
    identity: Transform,
}

impl<'a> Ground<'a> {
    /// Finds groups, scales and orders: as `convert` would choose them, or as the converted file records them.
    pub(super) fn new(job: Job<'a>, extent: Extent, progress: &dyn Progress) -> Result<Self> {
        let arch = Arch::from_metadata(job.source.metadata());
        let shapes = job.source.tensors().iter().map(|tensor| Shape { name: &tensor.name, dims: &tensor.dims });
        let all = groups(shapes, &arch);
        let (transforms, outcomes, notices, tcq4) = if let Some(file) = job.converted {
            (recorded_transforms(file)?, Vec::new(), Vec::new(), tcq4_tensors(file, job.source)?)
        } else {
            let read = |tensor: &_, first, out: &mut [f32]| crate::convert::read_rows(job.source, tensor, first, out);
            let prepared = prepare(job.source, &read, job.statistics, job.settings, progress)?;
            (prepared.transforms, prepared.groups, prepared.notices, job.settings.targets.clone())
        };
        let mut ground = Self {
            job,
            arch,
            extent,
            groups: Vec::new(),
            all,
            tcq4,
            notices,
            transforms,
            identity: Transform::default(),
        };
        let known: Vec<Group> = ground.all.iter().filter_map(|group| ground.group(group, &outcomes)).collect();
        ground.groups = known;
        Ok(ground)
    }

    /// A group with what is known of it; nothing if no linear layer reads it.
    fn group(&self, input: &InputGroup, outcomes: &[GroupOutcome]) -> Option<Group> {
        let tensors: Vec<String> = input.readers.iter().filter(|name| self.is_linear(name)).cloned().collect();
        let first = tensors.iter().find(|name| self.tcq4.contains(*name)).or(tensors.first())?;
        let inverse = self.transform(first).column_scale.as_ref();
        Some(Group {
            layer: TensorName::parse(first).block,
            pooled: self
                .job
                .statistics
                .and_then(|statistics| Pooled::new(statistics, &tensors))
                .filter(|pooled| pooled.mean_sq.len() as u64 == input.columns),
            outcome: outcomes.iter().find(|outcome| outcome.group == input.key).cloned(),
            scale: inverse.map(|inverse| inverse.iter().map(|factor| 1.0 / factor).collect()),
            tensors,
            input: input.clone(),
        })
    }

    /// Whether a tensor is TCQ4, or was meant to be.
    fn is_linear(&self, name: &str) -> bool {
        let meant = |planned: &PlannedTensor| match &planned.reason {
            Reason::Linear => true,
            Reason::Substituted { wanted, .. } => *wanted == GgmlType::TCQ4_K32.to_string(),
            _ => false,
        };
        self.tcq4.contains(name) || self.planned(name).is_some_and(meant)
    }

    pub(super) fn planned(&self, name: &str) -> Option<&'a PlannedTensor> {
        self.job.plan.tensors.iter().find(|planned| planned.name == name)
    }

    pub(super) fn transform(&self, tensor: &str) -> &Transform {
        self.transforms.get(tensor).unwrap_or(&self.identity)
    }

    /// The group that a tensor reads.
    pub(super) fn group_of(&self, tensor: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.tensors.iter().any(|name| name == tensor))
    }

    /// What happens to the activation that a group reads.
    pub(super) fn preparation<'g>(&'g self, group: &'g Group) -> Preparation<'g> {
        let reader = group.tensors.iter().find(|name| self.tcq4.contains(*name));
        let order = reader.and_then(|name| self.transform(name).columns.as_ref());
        Preparation { scale: group.scale.as_deref(), order }
    }

    /// Sample rows of a group, of all experts alike; empty if there are none.
    pub(super) fn rows(&self, group: &Group) -> Vec<f32> {
        let of = |name: &String| rows_of(self.job.statistics, name, None, self.extent.sample_rows);
        let right = |rows: &Vec<f32>| !rows.is_empty() && (rows.len() as u64).is_multiple_of(group.input.columns);
        group.tensors.iter().map(of).find(right).unwrap_or_default()
    }

    /// ‖w_j‖² of each channel over the group's tensors, in the model's own weights.
    pub(super) fn weight_sq(&self, group: &Group) -> Result<Vec<f64>> {
        let columns = group.input.columns as usize;
        let mut sums = vec![0.0f64; columns];
        let step = (BLOCK / columns.max(1)).max(1) as u64;
        for tensor in group.tensors.iter().filter_map(|name| self.job.source.tensor(name)) {
            for first in (0..tensor.rows()).step_by(step as usize) {
                let mut values = vec![0.0; step.min(tensor.rows() - first) as usize * columns];
                self.read(tensor, first, &mut values)?;
                for row in values.chunks_exact(columns) {
                    row.iter().zip(&mut sums).for_each(|(&w, sum)| *sum += f64::from(w) * f64::from(w));
                }
            }
            self.job.source.release(tensor, 0..tensor.bytes as usize);
        }
        Ok(sums)
    }

    /// Reads rows of the model's own weights.
    pub(super) fn read(&self, tensor: &TensorInfo, first: u64, out: &mut [f32]) -> Result<()> {
        crate::convert::read_rows(self.job.source, tensor, first, out)
    }
}

/// The TCQ4 tensors of a converted file.
///
/// # Errors
/// A file without any, or with one that the source lacks.
fn tcq4_tensors(file: &Source, source: &Source) -> Result<BTreeSet<String>> {
    let names: BTreeSet<String> =
        file.tensors().iter().filter(|tensor| is_tcq4(file, tensor)).map(|tensor| tensor.name.clone()).collect();
    if names.is_empty() {
        return Err(Error::Usage {
            message: format!("{}: no tensor of this file is TCQ4", file.path().display()),
            hint: Some("the converted file is what `tcq4 convert` or `tcq4 quantize` wrote".into()),
        });
    }
    match names.iter().find(|name| source.tensor(name).is_none()) {
        Some(name) => Err(ConvertError::AnotherModel {
            path: source.path().to_path_buf(),
            other: file.path().to_path_buf(),
            tensor: name.clone(),
            expected: "a tensor of this name".into(),
            found: "no such tensor".into(),
        }
        .into()),
        None => Ok(names),
    }
}

/// A name without its layer and without `.weight`.
pub(super) fn kind_of(name: &str) -> String {
    let rest = match TensorName::parse(name).block {
        Some(_) => name.splitn(3, '.').nth(2).unwrap_or(name),
        None => name,
    };
    rest.strip_suffix(".weight").unwrap_or(rest).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        assert_eq!(kind_of("blk.12.ffn_down"), "ffn_down");
        assert_eq!(kind_of("blk.12.ffn_down.weight"), "ffn_down");
        assert_eq!(kind_of("output.weight"), "output");
        assert_eq!(kind_of("blk.x.y.weight"), "blk.x.y");
    }
}
