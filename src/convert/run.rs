//! Carries out a plan: encodes every tensor on all threads, writes each run of rows to its place, reads all of it back, then gives the file
//! its name. Decides nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::encode::RowRun;
use super::hash::tensor_sha256;
use super::keys::hash_key;
use super::plan::{Conversion, is_tcq4};
use super::units::{RowUnit, cut, run_all};
use crate::error::{ModelError, Result};
use crate::gguf::{Metadata, Source, Writer};
use crate::quant::Transform;
use crate::tcq::{Codec, Loss};
use crate::util::progress::Progress;

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
    /// The metadata of the output, but for the hashes of the tensors.
    pub metadata: Metadata,
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
/// Weights that are not finite or too large; what [`Writer`] refuses; [`crate::Error::Interrupted`].
pub fn convert(job: Job<'_>, output: &Path, force: bool, progress: &dyn Progress) -> Result<Converted> {
    let tensors = job.source.tensors();
    let mut metadata = job.metadata.clone();
    metadata.set(KEY_SOURCE, "0".repeat(64));
    for tensor in tensors {
        metadata.set(&hash_key(&tensor.name), "0".repeat(64));
    }
    let specs = job.plan.tensors.iter().map(PlannedTensor::spec).collect();
    let plan = Plan::new(&metadata, specs, job.source.alignment())?;
    let inputs: Vec<&Path> = job.source.shards().collect();
    let mut writer = Writer::create(output, &plan, force, &inputs)?;
    let units = cut(tensors.iter().map(|t| (t.rows(), t.columns())));
    let (written, source_sha256) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| job.source.sha256(&NoProgress));
        let written = write_units(&job, &plan, &writer, &units, progress)?;
        let hash = hash.join().map_err(|_| Error::Interrupted)?;
        Ok::<_, Error>((written, hash?))
    })?;
    for (tensor, hash) in reread(&job, &plan, &writer, &units, &written, progress)? {
        metadata.set(&hash_key(&tensors[tensor].name), hash);
    }
    metadata.set(KEY_SOURCE, source_sha256.as_str());
    writer.set_metadata(&metadata)?;
    writer.commit()?;
    Ok(Converted { outputs: vec![output.to_path_buf()], bytes: plan.total_bytes(), source_sha256, losses: losses(&job, &units, &written) })
}

/// What is kept of a run of rows after it is written.
struct Written {
    digest: u64,
    loss: Loss,
}

fn write_units(job: &Job<'_>, plan: &Plan, writer: &Writer, units: &[RowUnit], progress: &dyn Progress) -> Result<Vec<Written>> {
    let tensors = job.source.tensors();
    let left: Vec<AtomicU64> = tensors.iter().map(|t| AtomicU64::new(t.rows())).collect();
    let source_bytes = |unit: &RowUnit| unit.rows * (tensors[unit.tensor].bytes / tensors[unit.tensor].rows());
    run_all(units, "quantize", progress, source_bytes, |unit| {
        let tensor = &tensors[unit.tensor];
        let transform = job.transforms.get(&tensor.name).filter(|t| !t.is_identity());
        let to = job.plan.tensors[unit.tensor].to;
        let run = RowRun { source: job.source, tensor, transform, to, first: unit.first, rows: unit.rows };
        let (bytes, loss) = run.encode(job.codec)?;
        writer.write(unit.tensor, unit.first * (plan.tensor_bytes(unit.tensor) / tensor.rows()), &bytes)?;
        // Rows may be read in any order, so a tensor's pages go only when all of it is done.
        if left[unit.tensor].fetch_sub(unit.rows, Ordering::AcqRel) == unit.rows {
            job.source.release(tensor, 0..tensor.bytes as usize);
        }
        Ok(Written { digest: xxh3_64(&bytes), loss })
    })
}

/// Reads the temporary file back, compares it with what was meant, and hashes every tensor.
fn reread(
    job: &Job<'_>,
    plan: &Plan,
    writer: &Writer,
    units: &[RowUnit],
    written: &[Written],
    progress: &dyn Progress,
) -> Result<Vec<(usize, String)>> {
    let view = writer.reread()?;
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (index, unit) in units.iter().enumerate() {
        match spans.get_mut(unit.tensor) {
            Some(span) => span.end = index + 1,
            None => spans.push(index..index + 1),
        }
    }
    progress.begin("read back", plan.total_bytes(), Unit::Bytes);
    let one = |(tensor, span): (usize, &Range<usize>)| {
        let info = &job.plan.tensors[tensor];
        let data = view.tensor(tensor);
        let row = data.len() as u64 / info.dims.iter().skip(1).product::<u64>().max(1);
        for (unit, written) in units[span.clone()].iter().zip(&written[span.clone()]) {
            let bytes = &data[(unit.first * row) as usize..((unit.first + unit.rows) * row) as usize];
            if xxh3_64(bytes) != written.digest {
                let problem = format!("rows {}.. read back differ from what was written", unit.first);
                return Err(ModelError::Damaged { path: writer.path().to_path_buf(), tensor: info.name.clone(), problem }.into());
            }
        }
        let permutation = job.transforms.get(&info.name).and_then(Transform::runtime_order).filter(|_| info.is_tcq4());
        let hash = tensor_sha256(data, permutation);
        view.release(tensor);
        progress.advance(data.len() as u64);
        Ok((tensor, hash))
    };
    let hashes = spans.par_iter().enumerate().map(one).collect();
    progress.end();
    hashes
}

fn losses(job: &Job<'_>, units: &[RowUnit], written: &[Written]) -> Vec<TensorLoss> {
    let mut sums = vec![Loss::default(); job.plan.tensors.len()];
    for (unit, written) in units.iter().zip(written) {
        sums[unit.tensor] += written.loss;
    }
    let loss = |(tensor, sum): (&PlannedTensor, Loss)| TensorLoss { name: tensor.name.clone(), error_rel: sum.relative(), weights: tensor.elements() };
    job.plan.tensors.iter().zip(sums).filter(|(tensor, _)| tensor.is_tcq4()).map(loss).collect()
}
