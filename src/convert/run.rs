//! Carries out a plan: encodes every tensor on all threads, writes each run of rows to its place, reads all of it back, then gives the file
//! its name. Decides nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::batches::{Batch, Curvatures, Group, MomentsUse, batches};
use super::compensate::{By, Codes, Compensation, Means, OutputError, OutputSums};
use super::encode::{Encoded, RowRun};
use super::hash::tensor_sha256;
use super::keys::{KEY_SOURCE, hash_key};
use super::parts::Part;
use super::plan::{Conversion, PlannedTensor};
use super::sequential;
use super::units::{RowUnit, cut, in_order, run_all, run_some};
use crate::calib::Statistics;
use crate::device::EncodeTiles;
use crate::error::{ConvertError, Error, Result};
use crate::gguf::{Metadata, Plan, Sharding, Source, TensorInfo, Writer};
use crate::quant::rounding::importance;
use crate::quant::{StepRecord, Transform};
use crate::tcq::{Codec, Loss};
use crate::util::progress::{Progress, Unit};
use crate::util::shard::Shard;

/// Everything that a conversion needs, decided before.
pub struct Job<'a> {
    /// The model to read.
    pub source: &'a Source,
    /// What becomes of every tensor.
    pub plan: &'a Conversion,
    /// What happens to a tensor's rows and columns before it is encoded, by name.
    pub transforms: &'a BTreeMap<String, Transform>,
    /// The encoder of TCQ4 tensors.
    pub codec: Codec,
    /// What encodes them instead, with the same bytes.
    pub device: Option<&'a dyn EncodeTiles>,
    /// How codes are chosen.
    pub codes: Codes<'a>,
    /// What is known of the inputs: types that ggml writes keep more of the columns that matter.
    pub statistics: Option<&'a Statistics>,
    /// The metadata of the output, but for the hashes of the tensors.
    pub metadata: Metadata,
}

/// Where the output goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The file; shards get their names from it.
    pub path: PathBuf,
    /// Whether an existing file is replaced.
    pub force: bool,
    /// How it is divided into files.
    pub sharding: Sharding,
}

/// The squared error of one TCQ4 tensor, in the scaled and permuted domain.
#[derive(Debug, Clone, Serialize)]
pub struct TensorLoss {
    /// The tensor.
    pub name: String,
    /// Squared error relative to the squared weights.
    pub error_rel: f64,
    /// Number of weights.
    pub weights: u64,
    /// The error of the layer's output, where codes were chosen by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputError>,
    /// The second moments that codes were chosen by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moments: Option<MomentsUse>,
    /// What each step did, in the order in which they were taken; filled by [`Converted::record_steps`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepRecord>,
}

/// What [`convert`] wrote.
#[derive(Debug, Clone, Serialize)]
pub struct Converted {
    /// The files, shards in order.
    pub outputs: Vec<PathBuf>,
    /// Bytes of all files.
    pub bytes: u64,
    /// SHA-256 of the source, in hexadecimal.
    pub source_sha256: String,
    /// The TCQ4 tensors and their errors.
    pub losses: Vec<TensorLoss>,
}

/// Encodes and writes a model. The output appears under its name only when all of it is written, read back and synced.
///
/// # Errors
/// Weights that are not finite or too large; types that cannot be written; a quantised tensor that its transform would have quantised again
/// without [`Conversion::allow_requantize`]; what [`Writer`] refuses; [`crate::Error::Interrupted`].
pub fn convert(job: &Job<'_>, target: &Target, progress: &dyn Progress) -> Result<Converted> {
    let all = Part { shard: Shard::WHOLE, tensors: (0..job.plan.tensors.len()).collect() };
    write_model(job, target, (&all, false), None, progress)
}

/// As [`convert`], but writes some of the tensors, to a single file that says of which whole it is a part; `target` says where this file goes, and how
/// the whole will be divided. [`super::merge_parts`] makes the file of [`convert`] of all parts.
///
/// # Errors
/// As [`convert`].
pub fn convert_part(job: &Job<'_>, target: &Target, part: &Part, progress: &dyn Progress) -> Result<Converted> {
    convert_part_of(job, target, part, None, progress)
}

/// As [`convert_part`], of a source whose SHA-256 may be known.
///
/// # Errors
/// As there.
pub(super) fn convert_part_of(
    job: &Job<'_>,
    target: &Target,
    part: &Part,
    sha256: Option<&str>,
    progress: &dyn Progress,
) -> Result<Converted> {
    write_model(job, target, (part, true), sha256, progress)
}

fn write_model(
    job: &Job<'_>,
    target: &Target,
    (part, is_part): (&Part, bool),
    sha256: Option<&str>,
    progress: &dyn Progress,
) -> Result<Converted> {
    job.plan.check_encoders()?;
    check_requantized(job)?;
    let tensors = job.source.tensors();
    let mut metadata = job.metadata.clone();
    metadata.set(KEY_SOURCE, "0".repeat(64));
    for tensor in tensors {
        metadata.set(&hash_key(&tensor.name), "0".repeat(64));
    }
    let mut specs = job.plan.specs();
    let mut sharding = &target.sharding;
    if is_part {
        part.describe(&mut metadata, &specs, sharding);
        (sharding, specs) = (&Sharding::Single, part.tensors.iter().map(|&at| specs[at].clone()).collect());
    }
    let plan = Plan::sharded(&metadata, specs, job.source.alignment(), sharding, job.plan.dialect())
        .map_err(|e| e.at(&target.path))?;
    let inputs: Vec<&Path> = job.source.shards().collect();
    let mut writer = Writer::create(&target.path, &plan, target.force, &inputs)?;
    let mut units = cut(tensors.iter().map(|t| (t.matrices(), t.rows() / t.matrices(), t.columns())));
    units.retain(|unit| part.tensors.binary_search(&unit.tensor).is_ok());
    let failed = AtomicBool::new(false);
    let ((written, used), source_sha256) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| match sha256 {
            Some(known) => Ok(known.to_owned()),
            None => job.source.sha256(&Unseen { progress, failed: &failed }),
        });
        let written = write_units(&Rows::new(job, &plan, (&writer, part), &units), progress);
        failed.store(written.is_err(), Ordering::Relaxed);
        let hash = hash.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, Error>((written?, hash?))
    })?;
    for (&at, hash) in part.tensors.iter().zip(reread(job, &writer, &units, &written, progress)?) {
        metadata.set(&hash_key(&tensors[at].name), hash);
    }
    metadata.set(KEY_SOURCE, source_sha256.as_str());
    writer.set_metadata(&metadata)?;
    let outputs = writer.paths().map(PathBuf::from).collect();
    writer.commit()?;
    if let Codes::Gptq(Compensation { sequential: Some(sequential), .. }) = &job.codes
        && let Err(error) = sequential.checkpoint.forget()
    {
        progress.note(&format!("the output is complete, but its checkpoint is still there: {error}"));
    }
    Ok(Converted { outputs, bytes: plan.total_bytes(), source_sha256, losses: losses(job, &units, &written, used) })
}

/// The source is hashed beside the work that the progress shows: unseen, and given up with it.
struct Unseen<'a> {
    progress: &'a dyn Progress,
    failed: &'a AtomicBool,
}

impl Progress for Unseen<'_> {
    fn begin(&self, _label: &str, _total: u64, _unit: Unit) {}
    fn advance(&self, _amount: u64) {}
    fn end(&self) {}
    fn note(&self, message: &str) {
        self.progress.note(message);
    }
    fn interrupted(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.progress.interrupted()
    }
}

/// What happens to a tensor; an order that only the TCQ4 runtime undoes is left out where it takes another type.
fn transform_of<'a>(job: &Job<'a>, planned: &PlannedTensor) -> Option<Cow<'a, Transform>> {
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

/// Refuses to change the values of a tensor that keeps its quantised type, unless that is allowed.
fn check_requantized(job: &Job<'_>) -> Result<()> {
    let mut kept =
        job.plan.tensors.iter().filter(|t| t.to == t.from && !t.to.is_float() && transform_of(job, t).is_some());
    match kept.next() {
        Some(tensor) if !job.plan.allow_requantize => {
            let path = job.source.path().to_path_buf();
            Err(ConvertError::AlreadyQuantized { path, tensor: tensor.name.clone(), ty: tensor.from.to_string() }
                .into())
        }
        _ => Ok(()),
    }
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
    fn new(job: &'a Job<'a>, plan: &'a Plan, (writer, part): (&'a Writer, &'a Part), units: &'a [RowUnit]) -> Self {
        let left = job.source.tensors().iter().map(|t| AtomicU64::new(t.rows())).collect();
        let transforms: Vec<_> = job.plan.tensors.iter().map(|planned| transform_of(job, planned)).collect();
        let importances = job.plan.tensors.iter().zip(&transforms);
        let importances = importances.map(|(planned, transform)| importances_of(job, planned, transform.as_deref()));
        let (importances, own) = (importances.collect(), &part.tensors[..]);
        Self { job, plan, units, importances, transforms, writer, own, left }
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

fn write_units(rows: &Rows<'_>, progress: &dyn Progress) -> Result<(Vec<Written>, Used)> {
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

/// Reads the temporary file back, compares it with what was meant, and hashes every tensor, in their order.
fn reread(
    job: &Job<'_>,
    writer: &Writer,
    units: &[RowUnit],
    written: &[Written],
    progress: &dyn Progress,
) -> Result<Vec<String>> {
    let view = writer.reread()?;
    let runs: Vec<(RowUnit, u64)> = units.iter().copied().zip(written.iter().map(|w| w.digest)).collect();
    let by_tensor: Vec<&[(RowUnit, u64)]> = runs.chunk_by(|a, b| a.0.tensor == b.0.tensor).collect();
    progress.begin("read back", view.total_bytes(), Unit::Bytes);
    let hashes = in_order(&by_tensor, |runs| reread_tensor(job, &view, runs, progress));
    progress.end();
    hashes
}

/// Compares the runs of one tensor with what was meant, and hashes it.
fn reread_tensor(job: &Job<'_>, view: &Source, runs: &[(RowUnit, u64)], progress: &dyn Progress) -> Result<String> {
    if progress.interrupted() {
        return Err(Error::Interrupted);
    }
    let planned = &job.plan.tensors[runs[0].0.tensor];
    let fail = |problem: String| ConvertError::Damaged {
        path: view.path().to_path_buf(),
        tensor: planned.name.clone(),
        problem,
    };
    let info = view.tensor(&planned.name).ok_or_else(|| fail("it is not in the file that was just written".into()))?;
    let data = view.data(info);
    let row = info.bytes / info.rows();
    for (unit, digest) in runs {
        if xxh3_64(&data[(unit.first * row) as usize..((unit.first + unit.rows) * row) as usize]) != *digest {
            return Err(fail(format!("rows from {} on read back differ from what was written", unit.first)).into());
        }
    }
    let order = job.transforms.get(&planned.name).and_then(Transform::runtime_order).filter(|_| planned.is_tcq4());
    let hash = tensor_sha256(data, order);
    view.release(info, 0..data.len());
    progress.advance(info.bytes);
    Ok(hash)
}

fn losses(job: &Job<'_>, units: &[RowUnit], written: &[Written], mut used: Used) -> Vec<TensorLoss> {
    let mut sums = vec![(Loss::default(), OutputSums::default()); job.plan.tensors.len()];
    for (unit, written) in units.iter().zip(written) {
        sums[unit.tensor].0 += written.loss;
        sums[unit.tensor].1 += written.output;
    }
    let loss = |(index, (tensor, (sum, output))): (usize, (&PlannedTensor, (Loss, OutputSums)))| TensorLoss {
        name: tensor.name.clone(),
        error_rel: sum.relative(),
        weights: tensor.elements(),
        output: output.relative(),
        moments: used.remove(&index),
        steps: Vec::new(),
    };
    let written = |(index, (tensor, _)): &(usize, (&PlannedTensor, _))| {
        tensor.is_tcq4() && units.binary_search_by_key(index, |unit| unit.tensor).is_ok()
    };
    job.plan.tensors.iter().zip(sums).enumerate().filter(written).map(loss).collect()
}
