//! The inputs of a plan's TCQ4 tensors, and in which batches and which form their second moments are held so that memory suffices.
//!
//! A form is a compromise that memory forces: own second moments of experts where they fit, one for all experts where they do not, and where not even
//! that fits, second moments of blocks of rotated columns, which see nothing of one another. What was given up is told by [`compensation_limits`]
//! before and recorded for each tensor after.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::compensate::Compensation;
use super::plan::Conversion;
use crate::Result;
use crate::calib::input_moments::STARVED_BELOW;
use crate::calib::{Hessian, InputMoments, MomentsRequest};
use crate::gguf::Source;
use crate::math::products::LANES;
use crate::model::{Arch, Shape, groups};
use crate::quant::Transform;
use crate::quant::rounding::{ActivationNoise, Curvature, gathered, rotate};
use crate::tcq::{CHUNK, Codec};

/// Bytes of work on the second moment of columns that are rounded together, for each of its elements: the mean in f32, its factor in f64 and the
/// feedback in f32.
const WORK: u64 = 16;
/// Bytes that are kept of each of these elements until the rows are rounded: the second moment and the feedback, in f32.
const KEPT: u64 = 8;

/// Tensors with one input, by their indices in the plan.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    pub(super) tensors: Vec<usize>,
    pub(super) columns: u64,
    matrices: u64,
    form: Form,
}

/// Of what second moments are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    /// Columns that are rounded together: all of them, or blocks of so many (the last may be narrower).
    together: u64,
    per_matrix: bool,
}

/// Groups whose second moments are measured in one run of the model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Batch {
    pub(super) groups: Vec<Group>,
}

/// What the codes of a tensor were chosen by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MomentsUse {
    /// Rows of input, those of all experts together.
    pub rows: u64,
    /// Columns whose errors were weighed together, where memory did not suffice for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns_together: Option<u64>,
    /// Of tensors with experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertMoments>,
}

impl MomentsUse {
    /// Whether memory forced a compromise: blocks of columns, or one second moment for all experts.
    pub fn is_fallback(&self) -> bool {
        self.columns_together.is_some() || self.experts.as_ref().is_some_and(|experts| !experts.own)
    }
}

/// How the experts of a tensor were covered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertMoments {
    /// Whether each expert had a second moment of its own, blended with that of the layer by `rows / (rows + columns)`.
    pub own: bool,
    /// Rows below which an expert counts as starved.
    pub floor: u64,
    /// Rows that each expert saw.
    pub rows: Vec<u64>,
    /// The starved experts.
    pub starved: Vec<usize>,
}

/// What memory does not suffice for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CompensationLimits {
    /// Tensors whose experts share one second moment.
    pub shared: Vec<String>,
    /// Tensors whose columns are rounded in blocks of so many.
    pub blocks: Vec<(String, u64)>,
}

/// H of each block of columns, factored; `None` for a block whose second moment is of no use.
pub(super) struct Curvatures {
    pub(super) blocks: Vec<(usize, Option<Curvature>)>,
}

impl Batch {
    /// The tensors of all groups.
    pub(super) fn tensors(&self) -> impl Iterator<Item = usize> {
        self.groups.iter().flat_map(|group| group.tensors.iter().copied())
    }

    /// Bytes of its second moments and of the work on the widest.
    pub(super) fn bytes(&self) -> u64 {
        self.groups.iter().map(Group::bytes).sum::<u64>() + widest(&self.groups)
    }

    /// Measures the second moments of its inputs, in the order of the groups; `transforms` are by tensor.
    pub(super) fn measure(
        &self,
        plan: &Conversion,
        transforms: &[Option<Cow<'_, Transform>>],
        compensation: &Compensation<'_>,
    ) -> Result<Vec<Option<InputMoments>>> {
        let request = |group: &Group| group.request(plan, transforms[group.tensors[0]].as_deref());
        compensation.moments.measure(&self.groups.iter().map(request).collect::<Vec<_>>())
    }
}

impl Form {
    /// The widths of the blocks.
    fn widths(self, columns: u64) -> impl Iterator<Item = u64> {
        (0..columns).step_by(self.together.max(1) as usize).map(move |first| self.together.min(columns - first))
    }

    /// Bytes of the sums.
    fn sums(self, columns: u64, matrices: u64) -> u64 {
        let owners = if self.per_matrix { matrices } else { 1 };
        let sums = |width: u64| (Hessian::len(width as usize) * size_of::<i64>()) as u64;
        owners * self.widths(columns).map(sums).sum::<u64>()
    }

    /// Bytes of work beside the sums.
    fn work(self, columns: u64) -> u64 {
        let widths = || self.widths(columns);
        let kept = if self.together < columns { KEPT * widths().map(|width| width * width).sum::<u64>() } else { 0 };
        kept + WORK * self.together * self.together
    }

    /// The best form that fits into `memory`; the narrowest blocks where nothing does.
    fn fitting(columns: u64, matrices: u64, memory: u64) -> Self {
        let whole = [matrices > 1, false].map(|per_matrix| Self { together: columns, per_matrix });
        let chunk = CHUNK as u64;
        let blocks =
            (1..columns.div_ceil(chunk)).rev().map(|chunks| Self { together: chunks * chunk, per_matrix: false });
        let fits = |form: &Self| form.sums(columns, matrices) + form.work(columns) <= memory;
        let narrowest = Self { together: chunk.min(columns), per_matrix: false };
        whole.into_iter().chain(blocks).find(fits).unwrap_or(narrowest)
    }
}

impl Group {
    /// Bytes of its sums.
    pub(super) fn bytes(&self) -> u64 {
        self.form.sums(self.columns, self.matrices)
    }

    fn is_whole(&self) -> bool {
        self.form.together == self.columns
    }

    /// What to measure for rows and columns that are treated like this.
    pub(super) fn request(&self, plan: &Conversion, transform: Option<&Transform>) -> MomentsRequest {
        let blocks = if self.is_whole() { Vec::new() } else { self.blocks(transform).0 };
        MomentsRequest {
            weights: self.tensors.iter().map(|&index| plan.tensors[index].name.clone()).collect(),
            columns: self.columns as usize,
            matrices: self.matrices as usize,
            per_matrix: self.form.per_matrix,
            blocks,
        }
    }

    /// The activations' channels in the order of the weights' columns, block by block, and their factors.
    fn blocks(&self, transform: Option<&Transform>) -> (Vec<Vec<u32>>, Vec<f32>) {
        let identity = Transform::default();
        let (order, factors) = gathered(self.columns as usize, transform.unwrap_or(&identity));
        (order.chunks(self.form.together as usize).map(<[u32]>::to_vec).collect(), factors)
    }

    /// The matrices that are rounded by second moments of their own, or `None` for all of them at once.
    pub(super) fn parts(&self, moments: Option<&InputMoments>) -> Vec<Option<usize>> {
        let own = self.form.per_matrix && moments.is_some_and(InputMoments::per_matrix);
        if own { (0..self.matrices as usize).map(Some).collect() } else { vec![None] }
    }

    /// What the tensors (one matrix of them, or all) are rounded by; `None` where no second moment is of use.
    pub(super) fn curvatures(
        &self,
        (moments, matrix): (&InputMoments, Option<usize>),
        (plan, transform): (&Conversion, Option<&Transform>),
        (codec, compensation): (Codec, &Compensation<'_>),
    ) -> Option<Curvatures> {
        let (blocks, factors) = self.blocks(transform);
        let matrix = matrix.map(|matrix| (matrix, own_weight(moments.rows[matrix], self.columns)));
        let noise = self.noise(plan, transform, codec, compensation);
        let Compensation { damp, act_order, .. } = *compensation;
        let mut first = 0;
        let blocks: Vec<(usize, Option<Curvature>)> = blocks
            .iter()
            .map(|channels| {
                let own = first..first + channels.len();
                first = own.end;
                let curvature = moments.mean(channels, matrix).and_then(|mut hessian| {
                    rotate(&mut hessian, &factors[own.clone()], codec);
                    match &noise {
                        Some((noise, share)) => {
                            Curvature::with_noise(hessian, &noise.of_columns(own), *share, damp, act_order)
                        }
                        None => Curvature::new(&hessian, channels.len(), damp, act_order),
                    }
                });
                (channels.len(), curvature)
            })
            .collect();
        blocks.iter().any(|(_, curvature)| curvature.is_some()).then_some(Curvatures { blocks })
    }

    /// The noise of the activations on the sample rows of this input, where it is to be made up for and rows were kept.
    fn noise(
        &self,
        plan: &Conversion,
        transform: Option<&Transform>,
        codec: Codec,
        compensation: &Compensation<'_>,
    ) -> Option<(ActivationNoise, f32)> {
        let noise = compensation.noise?;
        let entry = |&index: &usize| noise.statistics.entries.get(&plan.tensors[index].name);
        let rows = self.tensors.iter().find_map(|index| entry(index)?.rows.as_ref())?;
        let identity = Transform::default();
        Some((ActivationNoise::measure(rows, transform.unwrap_or(&identity), noise.path, codec)?, noise.share))
    }

    /// What the record says.
    pub(super) fn used(&self, moments: &InputMoments) -> MomentsUse {
        let experts = ExpertMoments {
            own: self.form.per_matrix && moments.per_matrix(),
            floor: self.columns.div_ceil(STARVED_BELOW),
            rows: moments.rows.clone(),
            starved: moments.starved(self.columns as usize),
        };
        MomentsUse {
            rows: moments.rows_seen(),
            columns_together: (!self.is_whole()).then_some(self.form.together),
            experts: (self.matrices > 1).then_some(experts),
        }
    }
}

/// The weight of an expert's own second moment against that of its layer: as many rows as there are columns count as much as the layer does.
fn own_weight(rows: u64, columns: u64) -> f64 {
    rows as f64 / (rows + columns) as f64
}

/// What compensation costs: runs of the text, and bytes of memory beside those of [`super::working_memory`].
pub fn compensation_cost(source: &Source, plan: &Conversion, memory: u64) -> (usize, u64) {
    let batches = batches(source, plan, memory);
    (batches.len(), batches.iter().map(Batch::bytes).max().unwrap_or(0))
}

/// What second moments within `memory` cannot be.
pub fn compensation_limits(source: &Source, plan: &Conversion, memory: u64) -> CompensationLimits {
    let mut limits = CompensationLimits::default();
    for group in batches(source, plan, memory).iter().flat_map(|batch| &batch.groups) {
        let names = group.tensors.iter().map(|&index| plan.tensors[index].name.clone());
        match (group.is_whole(), group.matrices > 1 && !group.form.per_matrix) {
            (false, _) => limits.blocks.extend(names.map(|name| (name, group.form.together))),
            (true, true) => limits.shared.extend(names),
            (true, false) => (),
        }
    }
    limits
}

/// The second moments of the inputs of all TCQ4 tensors, whole, in the batches in which they fit into `memory`; where an input alone does not fit,
/// a batch has it to itself.
pub fn moments_requests(source: &Source, plan: &Conversion, memory: u64) -> Vec<Vec<MomentsRequest>> {
    let whole = |group: Group| {
        let own = Form { together: group.columns, per_matrix: group.matrices > 1 };
        let shared = Form { per_matrix: false, ..own };
        let fits = own.sums(group.columns, group.matrices) <= memory;
        Group { form: if fits { own } else { shared }, ..group }
    };
    let groups = inputs(source, plan, memory).into_iter().map(whole).collect();
    let batches = divided_by(groups, |groups| groups.iter().map(Group::bytes).sum::<u64>() <= memory);
    batches.iter().map(|batch| batch.groups.iter().map(|group| group.request(plan, None)).collect()).collect()
}

/// The second moments of all inputs if they, and the work on them, fit into `memory` together without any compromise.
pub fn single_run(source: &Source, plan: &Conversion, memory: u64) -> Option<Vec<MomentsRequest>> {
    let batches = batches(source, plan, memory);
    let [batch] = &batches[..] else { return None };
    let whole = batch.groups.iter().all(Group::is_whole);
    whole.then(|| batch.groups.iter().map(|group| group.request(plan, None)).collect())
}

/// The most work that one of these groups makes.
fn widest(groups: &[Group]) -> u64 {
    groups.iter().map(|group| group.form.work(group.columns)).max().unwrap_or(0)
}

/// Cuts the TCQ4 tensors of a plan into batches of consecutive inputs whose second moments, and the work on one of them, fit into `memory` together.
pub(super) fn batches(source: &Source, plan: &Conversion, memory: u64) -> Vec<Batch> {
    divided(inputs(source, plan, memory), memory)
}

/// Cuts inputs into such batches.
pub(super) fn divided(groups: Vec<Group>, memory: u64) -> Vec<Batch> {
    divided_by(groups, |groups| groups.iter().map(Group::bytes).sum::<u64>() + widest(groups) <= memory)
}

fn divided_by(groups: Vec<Group>, fits: impl Fn(&[Group]) -> bool) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for group in groups {
        let Some(last) = batches.last_mut() else {
            batches.push(Batch { groups: vec![group] });
            continue;
        };
        last.groups.push(group);
        if !fits(&last.groups) && last.groups.len() > 1 {
            let group = last.groups.pop();
            batches.push(Batch { groups: group.into_iter().collect() });
        }
    }
    batches
}

/// The inputs of the TCQ4 tensors, in the order of the tensors, each in the form that fits into `memory`.
pub(super) fn inputs(source: &Source, plan: &Conversion, memory: u64) -> Vec<Group> {
    let wanted = plan.tensors.iter().enumerate().filter(|(_, tensor)| tensor.is_tcq4());
    let mut index: BTreeMap<&str, usize> = wanted.map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    let shapes = source.tensors().iter().map(|tensor| Shape { name: &tensor.name, dims: &tensor.dims });
    let mut found: Vec<Group> = groups(shapes, &Arch::from_metadata(source.metadata()))
        .into_iter()
        .flat_map(|group| {
            let tensors: Vec<usize> = group.readers.iter().filter_map(|name| index.remove(name.as_str())).collect();
            by_matrices(source, tensors).into_iter().map(move |(matrices, tensors)| (group.columns, matrices, tensors))
        })
        .map(|(columns, matrices, tensors)| {
            let form = Form::fitting(columns, matrices, memory);
            Group { tensors, columns, matrices, form }
        })
        .collect();
    found.sort_by_key(|group| group.tensors[0]);
    found
}

/// Divides tensors by their number of matrices: the experts of a layer see other rows than what all tokens pass (shared experts).
fn by_matrices(source: &Source, tensors: Vec<usize>) -> BTreeMap<u64, Vec<usize>> {
    let mut divided: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for index in tensors {
        divided.entry(source.tensors()[index].matrices().max(1)).or_default().push(index);
    }
    divided
}

const _: () = assert!(CHUNK.is_multiple_of(LANES));

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = 1 << 30;

    #[test]
    fn the_form_is_the_best_that_fits() {
        let form = |columns, matrices, memory| {
            let Form { together, per_matrix } = Form::fitting(columns, matrices, memory);
            (together, per_matrix)
        };
        assert_eq!(form(14_336, 1, 4 * G), (14_336, false), "the widest input of an 8 B model");
        assert_eq!(form(4096, 8, 4 * G), (4096, true));
        assert_eq!(form(4096, 8, G / 2), (4096, false), "for all experts together");
        assert_eq!(form(65_536, 1, G), (1280, false));
        assert_eq!(form(65_536, 1, 1), (256, false), "nothing fits");
        assert_eq!(form(256, 1, 1), (256, false));
        // What is promised fits.
        for memory in [G / 4, G, 4 * G] {
            for columns in [256, 768, 11_008, 28_672, 65_536] {
                let form = Form::fitting(columns, 1, memory);
                assert!(form.sums(columns, 1) + form.work(columns) <= memory, "{columns} in {memory}: {form:?}");
            }
        }
    }

    #[test]
    fn blocks_cover_all_columns() {
        let widths = |together, columns| Form { together, per_matrix: false }.widths(columns).collect::<Vec<_>>();
        assert_eq!(widths(512, 1280), [512, 512, 256]);
        assert_eq!(widths(1280, 1280), [1280]);
        // Two blocks of 256: 256 * 288 / 2 numbers of 8 bytes each.
        assert_eq!(Form { together: 256, per_matrix: false }.sums(512, 1), 2 * 256 * 288 / 2 * 8);
        assert_eq!(Form { together: 256, per_matrix: true }.sums(256, 3), 3 * 256 * 288 / 2 * 8);
    }

    #[test]
    fn few_rows_weigh_little() {
        assert_eq!([own_weight(0, 256), own_weight(256, 256), own_weight(768, 256)], [0.0, 0.5, 0.75]);
    }
}
