//! Carries out a plan: encodes every tensor on all threads, writes each run of rows to its place, reads all of it back, then gives the file
//! its name. Decides nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::batches::MomentsUse;
use super::compensate::{Codes, Compensation, OutputError, OutputSums};
use super::hash::tensor_sha256;
use super::keys::{KEY_SOURCE, hash_key};
use super::parts::{Part, set_source};
use super::plan::{Conversion, PlannedTensor};
use super::rows::{Rows, Used, Written, transform_of, write_units};
use super::source_hashes::SourceHashes;
use super::units::{RowUnit, cut, in_order};
use crate::calib::Statistics;
use crate::device::EncodeTiles;
use crate::error::{ConvertError, Error, Result};
use crate::gguf::{Metadata, Plan, Sharding, Source, Writer};
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
    /// SHA-256 of the source, in hexadecimal; none for a part other than the first, which does not read all of it.
    pub source_sha256: Option<String>,
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

/// As [`convert_part`], of a source that may be known.
///
/// # Errors
/// As there.
pub(super) fn convert_part_of(
    job: &Job<'_>,
    target: &Target,
    part: &Part,
    known: Option<&SourceHashes>,
    progress: &dyn Progress,
) -> Result<Converted> {
    write_model(job, target, (part, true), known, progress)
}

fn write_model(
    job: &Job<'_>,
    target: &Target,
    (part, is_part): (&Part, bool),
    known: Option<&SourceHashes>,
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
    let ((written, used), hashes) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| {
            let progress = Unseen { progress, failed: &failed };
            match known {
                Some(known) => Ok(known.restricted(part)),
                None if is_part => SourceHashes::of_part(job.source, part, &progress),
                None => Ok(SourceHashes { sha256: Some(job.source.sha256(&progress)?), tensors: Vec::new() }),
            }
        });
        let written = write_units(&Rows::new(job, &plan, (&writer, part), &units), progress);
        failed.store(written.is_err(), Ordering::Relaxed);
        let hash = hash.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, Error>((written?, hash?))
    })?;
    for (&at, hash) in part.tensors.iter().zip(reread(job, &writer, &units, &written, progress)?) {
        metadata.set(&hash_key(&tensors[at].name), hash);
    }
    if let Some(sha256) = &hashes.sha256 {
        metadata.set(KEY_SOURCE, sha256.as_str());
    }
    if is_part {
        set_source(&mut metadata, &hashes.tensors);
    }
    writer.set_metadata(&metadata)?;
    let outputs = writer.paths().map(PathBuf::from).collect();
    writer.commit()?;
    if let Codes::Gptq(Compensation { sequential: Some(sequential), .. }) = &job.codes
        && let Err(error) = sequential.checkpoint.forget()
    {
        progress.note(&format!("the output is complete, but its checkpoint is still there: {error}"));
    }
    let (bytes, source_sha256) = (plan.total_bytes(), hashes.sha256);
    Ok(Converted { outputs, bytes, source_sha256, losses: losses(job, &units, &written, used) })
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
