//! Carries out a plan: encodes every tensor on all threads, writes each run of rows to its place, reads all of it back, then gives the file
//! its name. Decides nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::compensate::{Batch, By, Codes, Compensation, Means, OutputError, OutputSums, batches};
use super::encode::{Encoded, RowRun};
use super::hash::tensor_sha256;
use super::keys::{KEY_SOURCE, hash_key};
use super::plan::{Conversion, PlannedTensor};
use super::units::{RowUnit, cut, in_order, run_all, run_some};
use crate::calib::Statistics;
use crate::error::{ConvertError, Error, Result};
use crate::gguf::{Metadata, Plan, Sharding, Source, TensorInfo, Writer};
use crate::quant::rounding::Curvature;
use crate::quant::{StepRecord, Transform};
use crate::tcq::{Codec, Loss};
use crate::util::progress::{Progress, Unit};

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
    /// How codes are chosen.
    pub codes: Codes<'a>,
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
    job.plan.check_encoders()?;
    check_requantized(job)?;
    let tensors = job.source.tensors();
    let mut metadata = job.metadata.clone();
    metadata.set(KEY_SOURCE, "0".repeat(64));
    for tensor in tensors {
        metadata.set(&hash_key(&tensor.name), "0".repeat(64));
    }
    let plan = Plan::sharded(&metadata, job.plan.specs(), job.source.alignment(), &target.sharding, job.plan.dialect())
        .map_err(|e| e.at(&target.path))?;
    let inputs: Vec<&Path> = job.source.shards().collect();
    let mut writer = Writer::create(&target.path, &plan, target.force, &inputs)?;
    let units = cut(tensors.iter().map(|t| (t.rows(), t.columns())));
    let failed = AtomicBool::new(false);
    let (written, source_sha256) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| job.source.sha256(&Unseen { progress, failed: &failed }));
        let written = write_units(job, &plan, &writer, &units, progress);
        failed.store(written.is_err(), Ordering::Relaxed);
        let hash = hash.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, Error>((written?, hash?))
    })?;
    for (tensor, hash) in tensors.iter().zip(reread(job, &writer, &units, &written, progress)?) {
        metadata.set(&hash_key(&tensor.name), hash);
    }
    metadata.set(KEY_SOURCE, source_sha256.as_str());
    writer.set_metadata(&metadata)?;
    let outputs = writer.paths().map(PathBuf::from).collect();
    writer.commit()?;
    Ok(Converted { outputs, bytes: plan.total_bytes(), source_sha256, losses: losses(job, &units, &written) })
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

/// What is kept of a run of rows after it is written.
struct Written {
    digest: u64,
    loss: Loss,
    output: OutputSums,
}

fn write_units(
    job: &Job<'_>,
    plan: &Plan,
    writer: &Writer,
    units: &[RowUnit],
    progress: &dyn Progress,
) -> Result<Vec<Written>> {
    let tensors = job.source.tensors();
    let left: Vec<AtomicU64> = tensors.iter().map(|t| AtomicU64::new(t.rows())).collect();
    let transforms: Vec<Option<Cow<'_, Transform>>> =
        job.plan.tensors.iter().map(|planned| transform_of(job, planned)).collect();
    let source_bytes = |unit: &RowUnit| unit.rows * (tensors[unit.tensor].bytes / tensors[unit.tensor].rows());
    let write = |unit: &RowUnit, by: Option<&By<'_>>| {
        let tensor = &tensors[unit.tensor];
        let transform = transforms[unit.tensor].as_deref();
        let to = job.plan.tensors[unit.tensor].to;
        let run = RowRun { source: job.source, tensor, transform, to, first: unit.first, rows: unit.rows };
        let Encoded { bytes, loss, output } = run.encode(job.codec, by)?;
        writer.write(unit.tensor, unit.first * (plan.tensor_bytes(unit.tensor) / tensor.rows()), &bytes)?;
        // Rows may be read in any order, so a tensor's pages go only when all of it is done.
        if left[unit.tensor].fetch_sub(unit.rows, Ordering::AcqRel) == unit.rows {
            job.source.release(tensor, 0..tensor.bytes as usize);
        }
        Ok(Written { digest: xxh3_64(&bytes), loss, output })
    };
    match &job.codes {
        Codes::Nearest => run_all(units, "quantize", progress, source_bytes, |unit| write(unit, None)),
        Codes::Greedy(statistics) => {
            let means = means(job, statistics, &transforms);
            run_all(units, "quantize", progress, source_bytes, |unit| {
                write(unit, means[unit.tensor].as_ref().map(By::Means).as_ref())
            })
        }
        Codes::Gptq(compensation) => write_batches(job, units, (compensation, &transforms), progress, write),
    }
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
    job: &Job<'_>,
    units: &[RowUnit],
    (compensation, transforms): (&Compensation<'_>, &[Option<Cow<'_, Transform>>]),
    progress: &dyn Progress,
    write: impl Fn(&RowUnit, Option<&By<'_>>) -> Result<Written> + Sync,
) -> Result<Vec<Written>> {
    let tensors = job.source.tensors();
    let row_bytes = |unit: &RowUnit| unit.rows * (tensors[unit.tensor].bytes / tensors[unit.tensor].rows());
    let mut written: Vec<Option<Written>> = units.iter().map(|_| None).collect();
    let mut run = |of: &[usize], curvature: Option<&Curvature>| {
        let own: Vec<usize> = (0..units.len()).filter(|&at| of.contains(&units[at].tensor)).collect();
        let own_units: Vec<RowUnit> = own.iter().map(|&at| units[at]).collect();
        let by = curvature.map(|curvature| By::Curvature(curvature, compensation.rounding));
        let results = run_some(&own_units, progress, row_bytes, |unit| write(unit, by.as_ref()))?;
        own.into_iter().zip(results).for_each(|(at, result)| written[at] = Some(result));
        Ok::<_, Error>(())
    };
    let bytes = |of: &[usize]| of.iter().map(|&at| tensors[at].bytes).sum();
    let batches = batches(job.source, job.plan, compensation.memory);
    let compensated: BTreeSet<usize> = batches.iter().flat_map(Batch::tensors).collect();
    let others: Vec<usize> = (0..tensors.len()).filter(|at| !compensated.contains(at)).collect();
    progress.begin("quantize the rest", bytes(&others), Unit::Bytes);
    run(&others, None)?;
    progress.end();
    for batch in batches {
        let mut moments = batch.measure(job.plan, compensation)?;
        progress.begin("quantize", bytes(&batch.tensors().collect::<Vec<_>>()), Unit::Bytes);
        for group in &batch.groups {
            let transform = transforms[group.tensors[0]].as_deref();
            let curvature = group.curvature(job.plan, &mut moments, transform, (job.codec, compensation));
            run(&group.tensors, curvature.as_ref())?;
        }
        progress.end();
    }
    Ok(written.into_iter().flatten().collect())
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

fn losses(job: &Job<'_>, units: &[RowUnit], written: &[Written]) -> Vec<TensorLoss> {
    let mut sums = vec![(Loss::default(), OutputSums::default()); job.plan.tensors.len()];
    for (unit, written) in units.iter().zip(written) {
        sums[unit.tensor].0 += written.loss;
        sums[unit.tensor].1 += written.output;
    }
    let loss = |(tensor, (sum, output)): (&PlannedTensor, (Loss, OutputSums))| TensorLoss {
        name: tensor.name.clone(),
        error_rel: sum.relative(),
        weights: tensor.elements(),
        output: output.relative(),
        steps: Vec::new(),
    };
    job.plan.tensors.iter().zip(sums).filter(|(tensor, _)| tensor.is_tcq4()).map(loss).collect()
}
