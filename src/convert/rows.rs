//! Takes runs of rows through a conversion: reads, transforms, encodes and puts them to their places, batch after batch where codes follow the inputs.
//! Knows nothing of files besides the places of rows in them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::batches::{Batch, Curvatures, Group, MomentsUse, batches};
use super::compensate::{By, Codes, Compensation, Means, OutputSums};
use super::encode::{Encoded, RowRun};
use super::parts::Part;
use super::plan::PlannedTensor;
use super::run::Job;
use super::sequential;
use super::units::{RowUnit, run_all, run_some};
use crate::calib::Statistics;
use crate::error::{Error, Result};
use crate::gguf::{Plan, TensorInfo, Writer};
use crate::quant::Transform;
use crate::quant::rounding::importance;
use crate::tcq::Loss;
use crate::util::progress::{Progress, Unit};

/// What happens to a tensor; an order that only the TCQ4 runtime undoes is left out where it takes another type.
pub(super) fn transform_of<'a>(job: &Job<'a>, planned: &PlannedTensor) -> Option<Cow<'a, Transform>> {
    let transform = job.transforms.get(&planned.name)?;
    let transform = match transform.runtime_order() {
        Some(_) if !planned.is_tcq4() => Cow::Owned(transform.without_runtime()),
        _ => Cow::Borrowed(transform),
    };
    Some(transform).filter(|transform| !transform.is_identity())
}

/// How much each column of a tensor's matrices counts, where ggml writes it and its inputs are known; empty elsewhere.
fn importances_of(job: &Job<'_>, planned: &PlannedTensor, transform: Option<&Transform>) -> Vec<Vec<f32>> {
    let stats = job.statistics.and_then(|statistics| statistics.entries.get(&planned.name));
    let written = !planned.is_tcq4() && !planned.to.is_float() && planned.to != planned.from;
    let Some(stats) = stats.filter(|stats| written && stats.columns as u64 == planned.dims[0]) else {
        return Vec::new();
    };
    let identity = Transform::default();
    let of = |matrix| importance(&stats.importance(matrix), transform.unwrap_or(&identity));
    (0..stats.matrices).map(of).collect()
}

/// By tensors, the second moments that their codes were chosen by.
pub(super) type Used = BTreeMap<usize, MomentsUse>;

/// What is kept of a run of rows after it is written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) digest: u64,
    pub(super) loss: Loss,
    pub(super) output: OutputSums,
}

impl Written {
    pub(super) fn of(encoded: &Encoded) -> Self {
        Self { digest: xxh3_64(&encoded.bytes), loss: encoded.loss, output: encoded.output }
    }
}

/// Encodes runs of rows, and puts them into the output.
pub(super) struct Rows<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) plan: &'a Plan,
    pub(super) units: &'a [RowUnit],
    /// By tensor.
    pub(super) transforms: Vec<Option<Cow<'a, Transform>>>,
    /// By tensor, how much each column of each of its matrices counts.
    importances: Vec<Vec<Vec<f32>>>,
    writer: &'a Writer,
    /// Tensors that are written, ascending: their places here are those in the output.
    own: &'a [usize],
    /// Rows of each tensor that are still to be put.
    left: Vec<AtomicU64>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(
        job: &'a Job<'a>,
        plan: &'a Plan,
        (writer, part): (&'a Writer, &'a Part),
        units: &'a [RowUnit],
    ) -> Self {
        let left = job.source.tensors().iter().map(|t| AtomicU64::new(t.rows())).collect();
        let transforms: Vec<_> = job.plan.tensors.iter().map(|planned| transform_of(job, planned)).collect();
        let importances = job.plan.tensors.iter().zip(&transforms);
        let importances = importances.map(|(planned, transform)| importances_of(job, planned, transform.as_deref()));
        let (importances, own) = (importances.collect(), &part.tensors[..]);
        Self { job, plan, units, transforms, importances, writer, own, left }
    }

    pub(super) fn tensor(&self, unit: &RowUnit) -> &'a TensorInfo {
        &self.job.source.tensors()[unit.tensor]
    }

    /// The matrix that a run of rows belongs to.
    pub(super) fn matrix(&self, unit: &RowUnit) -> usize {
        let tensor = self.tensor(unit);
        (unit.first / (tensor.rows() / tensor.matrices())) as usize
    }

    pub(super) fn run(&self, unit: &RowUnit) -> RowRun<'_> {
        let transform = self.transforms[unit.tensor].as_deref();
        let to = self.job.plan.tensors[unit.tensor].to;
        let (source, tensor) = (self.job.source, self.tensor(unit));
        let importance = self.importances[unit.tensor].get(self.matrix(unit)).map(Vec::as_slice);
        RowRun { source, tensor, transform, to, importance, first: unit.first, rows: unit.rows }
    }

    pub(super) fn encode(&self, unit: &RowUnit, by: Option<&By<'_>>) -> Result<Encoded> {
        self.run(unit).encode(self.job.codec, self.job.device, by)
    }

    /// Puts bytes into the output.
    pub(super) fn put(&self, unit: &RowUnit, bytes: &[u8]) -> Result<()> {
        let tensor = self.tensor(unit);
        let place = self.own.binary_search(&unit.tensor).unwrap_or_else(|place| place);
        let row_bytes = self.plan.tensor_bytes(place) / tensor.rows();
        self.writer.write(place, unit.first * row_bytes, bytes)?;
        // Rows may be read in any order, so a tensor's pages go only when all of it is done.
        if self.left[unit.tensor].fetch_sub(unit.rows, Ordering::AcqRel) == unit.rows {
            self.job.source.release(tensor, 0..tensor.bytes as usize);
        }
        Ok(())
    }

    pub(super) fn store(&self, unit: &RowUnit, encoded: &Encoded) -> Result<Written> {
        self.put(unit, &encoded.bytes)?;
        Ok(Written::of(encoded))
    }
}

/// Encodes and puts all units, by what the codes are chosen by; results in the order of the units.
pub(super) fn write_units(rows: &Rows<'_>, progress: &dyn Progress) -> Result<(Vec<Written>, Used)> {
    let (job, units) = (rows.job, rows.units);
    let tensors = job.source.tensors();
    let source_bytes = |unit: &RowUnit| unit.rows * (tensors[unit.tensor].bytes / tensors[unit.tensor].rows());
    let write = |unit: &RowUnit, by: Option<&By<'_>>| rows.store(unit, &rows.encode(unit, by)?);
    let written = match &job.codes {
        Codes::Nearest => run_all(units, "quantize", progress, source_bytes, |unit| write(unit, None)),
        Codes::Greedy(statistics) => {
            let means = means(job, statistics, &rows.transforms);
            run_all(units, "quantize", progress, source_bytes, |unit| {
                write(unit, means[unit.tensor].as_ref().map(By::Means).as_ref())
            })
        }
        Codes::Gptq(compensation) => {
            return match &compensation.sequential {
                Some(sequential) => sequential::write(rows, compensation, sequential, progress),
                None => write_batches(rows, compensation, progress, write),
            };
        }
    };
    Ok((written?, Used::new()))
}

/// The mean inputs of every TCQ4 tensor, as far as they are known.
fn means(job: &Job<'_>, statistics: &Statistics, transforms: &[Option<Cow<'_, Transform>>]) -> Vec<Option<Means>> {
    let of = |((planned, tensor), transform): ((&PlannedTensor, &TensorInfo), &Option<Cow<'_, Transform>>)| {
        let stats = statistics.entries.get(&planned.name).filter(|_| planned.is_tcq4())?;
        Means::new(tensor, stats, transform.as_deref(), job.codec)
    };
    job.plan.tensors.iter().zip(job.source.tensors()).zip(transforms).map(of).collect()
}

/// Writes what is not compensated, then batch after batch of what is; results in the order of the units.
fn write_batches(
    rows: &Rows<'_>,
    compensation: &Compensation<'_>,
    progress: &dyn Progress,
    write: impl Fn(&RowUnit, Option<&By<'_>>) -> Result<Written> + Sync,
) -> Result<(Vec<Written>, Used)> {
    let Rows { job, units, transforms, own: chosen, .. } = rows;
    let tensors = job.source.tensors();
    let row_bytes = |unit: &RowUnit| unit.rows * (tensors[unit.tensor].bytes / tensors[unit.tensor].rows());
    let matrix_of = |unit: &RowUnit| {
        let tensor = &tensors[unit.tensor];
        (unit.first / (tensor.rows() / tensor.matrices())) as usize
    };
    let mut written: Vec<Option<Written>> = units.iter().map(|_| None).collect();
    let mut run = |of: &[usize], part: Option<usize>, by: Option<&Curvatures>| {
        let is_own = |unit: &RowUnit| of.contains(&unit.tensor) && part.is_none_or(|part| matrix_of(unit) == part);
        let own: Vec<usize> = (0..units.len()).filter(|&at| is_own(&units[at])).collect();
        let own_units: Vec<RowUnit> = own.iter().map(|&at| units[at]).collect();
        let by = by.map(|curvatures| By::Curvature(curvatures, compensation.rounding));
        let results = run_some(&own_units, progress, row_bytes, |unit| write(unit, by.as_ref()))?;
        own.into_iter().zip(results).for_each(|(at, result)| written[at] = Some(result));
        Ok::<_, Error>(())
    };
    let bytes = |of: &[usize]| of.iter().map(|&at| tensors[at].bytes).sum();
    let mut batches = batches(job.source, job.plan, compensation.memory);
    for batch in &mut batches {
        batch.groups.retain(|group| group.tensors.iter().any(|at| chosen.contains(at)));
    }
    batches.retain(|batch| !batch.groups.is_empty());
    let compensated: BTreeSet<usize> = batches.iter().flat_map(Batch::tensors).collect();
    let others: Vec<usize> = chosen.iter().copied().filter(|at| !compensated.contains(at)).collect();
    progress.begin("quantize the rest", bytes(&others), Unit::Bytes);
    run(&others, None, None)?;
    progress.end();
    let mut used = Used::new();
    for batch in batches {
        let transform = |group: &Group| transforms[group.tensors[0]].as_deref();
        let moments = batch.measure(job.plan, transforms, compensation)?;
        progress.begin("quantize", bytes(&batch.tensors().collect::<Vec<_>>()), Unit::Bytes);
        for (group, moments) in batch.groups.iter().zip(moments) {
            for part in group.parts(moments.as_ref()) {
                let curvatures = moments.as_ref().and_then(|moments| {
                    group.curvatures((moments, part), (job.plan, transform(group)), (job.codec, compensation))
                });
                run(&group.tensors, part, curvatures.as_ref())?;
            }
            if let Some(moments) = &moments {
                used.extend(group.tensors.iter().map(|&tensor| (tensor, group.used(moments))));
            }
        }
        progress.end();
    }
    Ok((written.into_iter().flatten().collect(), used))
}
