//! Second moments on disk: a GGUF file of their own, mapped when it is read, and exact sums, so that files of parts of a text add up to that of the whole.
//!
//! Keys: `general.type` "tcq4.second-moments", `tcq4.moments.version` (u32), `.model` (fingerprint), `.text` (hash of text, chunks and context),
//! `.chunks` (i32 array: the places of the summed chunks in the run), `.chunk_count` (u32: chunks of the whole run), `.datasets`, `.inputs` (JSON:
//! weights, columns, matrices, whether each matrix has sums of its own). Input `n` has the tensors `input.n.sums` (I64, in units: see
//! [`Hessian::sums`]; the second dimension are the matrices), `input.n.rows` (I64, rows seen by each matrix; all 0 if no graph read the input) and
//! `input.n.unit` (I32, the power of two that the sums count).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::hessian::{Hessian, OutOfRange, USUAL_UNIT, Unit};
use super::input_moments::{Block, InputMoments, MomentsRequest};
use super::run::{CalibrationOptions, UBATCH};
use crate::corpus::Corpus;
use crate::corpus::chunks::Chunks;
use crate::error::MomentsError;
use crate::gguf::{GgmlType, Metadata, Plan, Source, TensorInfo, TensorSpec, Writer};
use crate::llama::Model;
use crate::math::products::LANES;
use crate::util::shard::Shard;
use crate::{Error, Result};

const KIND: &str = "tcq4.second-moments";
const VERSION: u64 = 1;
/// Tensors of an input: sums, rows, unit.
const PARTS: usize = 3;
/// Numbers that are written at once.
const PIECE: usize = 1 << 16;

/// The model and the text of second moments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MomentsOrigin {
    /// The model ([`super::store::fingerprint`]).
    pub model: String,
    /// A hash of the text, its chunks and their length.
    pub text: String,
    /// The places of the summed chunks in the run, ascending.
    pub chunks: Vec<i32>,
    /// Chunks of the whole run.
    pub chunk_count: u32,
    /// The calibration texts.
    pub datasets: Vec<String>,
}

impl MomentsOrigin {
    /// That of [`super::second_moments`] on the model with this fingerprint.
    ///
    /// # Errors
    /// If the text is too short.
    pub fn new(
        model: &Model,
        corpus: &Corpus,
        fingerprint: &str,
        options: &CalibrationOptions,
        shard: Shard,
    ) -> Result<Self> {
        let plan = Chunks::of(model, corpus, options.ctx)?.plan(options.samples, options.selection);
        let ubatch = options.ctx.min(UBATCH);
        let text = format!("text {}, ctx {}, ubatch {ubatch}, chunks {:?}", corpus.hash(), options.ctx, plan.summed);
        let places = 0..plan.summed.len();
        Ok(Self {
            model: fingerprint.to_owned(),
            text: format!("{:032x}", xxh3_128(text.as_bytes())),
            chunks: places.filter(|&place| shard.has(place)).map(|place| place as i32).collect(),
            chunk_count: plan.summed.len() as u32,
            datasets: corpus.sources.clone(),
        })
    }

    /// Whether all chunks of the run were summed.
    pub fn is_whole(&self) -> bool {
        self.chunks.len() == self.chunk_count as usize
    }
}

/// One input of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    weights: Vec<String>,
    columns: usize,
    matrices: usize,
    per_matrix: bool,
}

impl Input {
    fn owners(&self) -> usize {
        if self.per_matrix { self.matrices } else { 1 }
    }

    /// The tensors of input `index`: sums, rows, unit.
    fn specs(&self, index: usize) -> [TensorSpec; PARTS] {
        let spec = |part, dims: Vec<usize>, ty| TensorSpec {
            name: format!("input.{index}.{part}"),
            dims: dims.into_iter().map(|dim| dim as u64).collect(),
            ty,
        };
        let mut sums = vec![Hessian::len(self.columns), self.owners()];
        sums.truncate(self.owners().min(2));
        [
            spec("sums", sums, GgmlType::I64),
            spec("rows", vec![self.matrices], GgmlType::I64),
            spec("unit", vec![1], GgmlType::I32),
        ]
    }
}

/// A file that is being written, input after input. Dropped without [`MomentsWriter::commit`], it leaves nothing.
pub struct MomentsWriter {
    writer: Writer,
    inputs: Vec<Input>,
}

impl MomentsWriter {
    /// Begins a file at `path`, which must not exist unless `force`, and must not be one of `inputs`, for the answers to `requests`, which ask for all
    /// channels.
    ///
    /// # Errors
    /// If the file exists or cannot be written.
    pub fn create(
        path: &Path,
        origin: &MomentsOrigin,
        requests: &[MomentsRequest],
        force: bool,
        inputs: &[&Path],
    ) -> Result<Self> {
        let of = |request: &MomentsRequest| Input {
            weights: request.weights.clone(),
            columns: request.columns,
            matrices: request.matrices,
            per_matrix: request.per_matrix && request.matrices > 1,
        };
        Self::with(path, origin, requests.iter().map(of).collect(), force, inputs)
    }

    fn with(path: &Path, origin: &MomentsOrigin, stored: Vec<Input>, force: bool, inputs: &[&Path]) -> Result<Self> {
        let mut keys = Metadata::new();
        keys.set("general.type", KIND);
        keys.set("tcq4.moments.version", VERSION as u32);
        keys.set("tcq4.moments.model", origin.model.as_str());
        keys.set("tcq4.moments.text", origin.text.as_str());
        keys.set("tcq4.moments.chunks", origin.chunks.as_slice());
        keys.set("tcq4.moments.chunk_count", origin.chunk_count);
        keys.set("tcq4.moments.datasets", origin.datasets.as_slice());
        let json = serde_json::to_string(&stored).map_err(|e| Error::io(path, "write")(e.into()))?;
        keys.set("tcq4.moments.inputs", json);
        let specs = stored.iter().enumerate().flat_map(|(index, input)| input.specs(index)).collect();
        let plan = Plan::new(&keys, specs, 32).map_err(|defect| defect.at(path))?;
        Ok(Self { writer: Writer::create(path, &plan, force, inputs)?, inputs: stored })
    }

    /// Writes input number `index`; `None` where the model does not read it.
    ///
    /// # Errors
    /// If the file cannot be written.
    ///
    /// # Panics
    /// If the moments have another shape than was asked for.
    pub fn write(&self, index: usize, moments: Option<&InputMoments>) -> Result<()> {
        let (input, first) = (&self.inputs[index], index * PARTS);
        let len = Hessian::len(input.columns);
        for owner in 0..input.owners() {
            let sums = moments.map(|moments| moments.blocks[0].sums[owner].sums());
            assert!(sums.is_none_or(|sums| sums.len() == len));
            for start in (0..len).step_by(PIECE) {
                let end = len.min(start + PIECE);
                let at = ((owner * len + start) * size_of::<i64>()) as u64;
                match sums {
                    Some(sums) => self.writer.write(first, at, bytemuck::cast_slice(&sums[start..end]))?,
                    None => self.writer.write(first, at, &vec![0; (end - start) * size_of::<i64>()])?,
                }
            }
        }
        let rows: Vec<i64> = match moments {
            Some(moments) => moments.rows.iter().map(|&rows| rows as i64).collect(),
            None => vec![0; input.matrices],
        };
        self.writer.write(first + 1, 0, bytemuck::cast_slice(&rows))?;
        let unit = moments.map_or(USUAL_UNIT, |moments| moments.blocks[0].sums[0].unit());
        self.writer.write(first + 2, 0, &unit.power().to_le_bytes())
    }

    /// Gives the file its name, now that all inputs are written.
    ///
    /// # Errors
    /// If an input lacks, or the file cannot be synced.
    pub fn commit(self) -> Result<()> {
        self.writer.commit()
    }
}

/// A file of second moments, mapped.
#[derive(Debug)]
pub struct MomentsFile {
    path: PathBuf,
    file: Arc<Source>,
    origin: MomentsOrigin,
    inputs: Vec<Input>,
    units: Vec<Unit>,
    rows: Vec<Vec<u64>>,
}

impl MomentsFile {
    /// Opens and checks a file. The sums themselves are only looked at where their diagonals lie.
    ///
    /// # Errors
    /// What [`Source::open`] refuses; [`MomentsError`] for what makes no sense as second moments.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(Source::open(path)?);
        let keys = Keys { path, keys: file.metadata() };
        let (origin, inputs) = (keys.origin()?, keys.inputs()?);
        let mut opened = Self { path: path.to_path_buf(), file, origin, inputs, units: Vec::new(), rows: Vec::new() };
        for index in 0..opened.inputs.len() {
            let (rows, unit) = opened.check_input(index)?;
            opened.rows.push(rows);
            opened.units.push(unit);
        }
        Ok(opened)
    }

    /// Where the sums come from.
    pub fn origin(&self) -> &MomentsOrigin {
        &self.origin
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that these are sums of this model, which has this fingerprint.
    ///
    /// # Errors
    /// [`MomentsError::Another`].
    pub fn check_model(&self, model: &Source, fingerprint: &str) -> Result<(), MomentsError> {
        self.same("model", fingerprint, &self.origin.model)?;
        for input in &self.inputs {
            let stored = format!("{} x {} input channels", input.matrices, input.columns);
            for weight in &input.weights {
                let found = model.tensor(weight).map_or_else(
                    || format!("no tensor `{weight}`"),
                    |info| format!("{} x {} input channels", info.matrices().max(1), info.columns()),
                );
                self.same("shape of a tensor", &found, &stored)?;
            }
        }
        Ok(())
    }

    /// Checks that these are the sums that a run of `expected` would give.
    ///
    /// # Errors
    /// [`MomentsError::Another`].
    pub fn check_origin(&self, expected: &MomentsOrigin) -> Result<(), MomentsError> {
        self.same("model", &expected.model, &self.origin.model)?;
        self.same("text or setting", &expected.text, &self.origin.text)?;
        let chunks = |origin: &MomentsOrigin| format!("{} of {} chunks", origin.chunks.len(), origin.chunk_count);
        self.same("part of the text", &chunks(expected), &chunks(&self.origin))
    }

    fn same(&self, what: &'static str, expected: &str, found: &str) -> Result<(), MomentsError> {
        if expected == found {
            return Ok(());
        }
        let (path, expected, found) = (self.path.clone(), expected.to_owned(), found.to_owned());
        Err(MomentsError::Another { path, what, expected, found })
    }

    /// The second moment of the input that one of `weights` reads; `None` if the model does not read it or the file does not have it.
    pub fn input(&self, weights: &[String]) -> Option<InputMoments> {
        let index = self.inputs.iter().position(|input| input.weights.iter().any(|own| weights.contains(own)))?;
        self.moments(index)
    }

    fn moments(&self, index: usize) -> Option<InputMoments> {
        let (input, rows, len) = (&self.inputs[index], &self.rows[index], Hessian::len(self.inputs[index].columns));
        let all: u64 = rows.iter().sum();
        let tensor = self.file.tensors().iter().position(|tensor| tensor.name == format!("input.{index}.sums"))?;
        let sum = |owner: usize| {
            let seen = if input.per_matrix { rows[owner] } else { all };
            Hessian::mapped(input.columns, seen, self.units[index], (Arc::clone(&self.file), tensor, owner * len))
        };
        let block = Block { channels: None, sums: (0..input.owners()).map(sum).collect() };
        (all > 0).then(|| InputMoments { rows: rows.clone(), blocks: vec![block] })
    }

    /// Checks the tensors of an input; gives its rows and its unit.
    fn check_input(&self, index: usize) -> Result<(Vec<u64>, Unit), MomentsError> {
        let input = &self.inputs[index];
        let [sums, rows, unit] = input.specs(index);
        let (sums, rows, unit) = (self.tensor(&sums)?, self.tensor(&rows)?, self.tensor(&unit)?);
        let refuse = |tensor: &TensorInfo, expected: &str, found: String| MomentsError::Tensor {
            path: self.path.clone(),
            tensor: tensor.name.clone(),
            expected: expected.to_owned(),
            found,
        };
        let aligned = |tensor: &TensorInfo| {
            let found = || refuse(tensor, "numbers at multiples of 8 bytes", format!("offset {}", tensor.offset()));
            bytemuck::try_cast_slice::<u8, i64>(self.file.data(tensor)).map_err(|_| found())
        };
        let counts = aligned(rows)?;
        if let Some(bad) = counts.iter().find(|&&count| !(0..1 << 53).contains(&count)) {
            return Err(refuse(rows, "numbers of rows", bad.to_string()));
        }
        let bytes = self.file.data(unit).first_chunk().map_or(i32::MAX, |bytes| i32::from_le_bytes(*bytes));
        let unit = Unit::new(bytes).ok_or_else(|| refuse(unit, "a power of two within ±200", bytes.to_string()))?;
        let (numbers, len) = (aligned(sums)?, Hessian::len(input.columns));
        for owner in numbers.chunks_exact(len) {
            let mut at = 0;
            for channel in 0..input.columns {
                let width = input.columns - channel / LANES * LANES;
                let value = owner[at + channel % LANES];
                if value < 0 {
                    return Err(refuse(sums, "no negative number on the diagonal", format!("{value} at {channel}")));
                }
                at += width;
            }
        }
        Ok((counts.iter().map(|&count| count as u64).collect(), unit))
    }

    fn tensor(&self, spec: &TensorSpec) -> Result<&TensorInfo, MomentsError> {
        let describe = |ty: GgmlType, dims: &[u64]| format!("{ty} of the shape {dims:?}");
        let found = self.file.tensor(&spec.name);
        found.filter(|info| info.ty == spec.ty && info.dims == spec.dims).ok_or_else(|| MomentsError::Tensor {
            path: self.path.clone(),
            tensor: spec.name.clone(),
            expected: describe(spec.ty, &spec.dims),
            found: found.map_or_else(|| "no such tensor".into(), |info| describe(info.ty, &info.dims)),
        })
    }
}

/// Adds up files of parts of one text: the result is the file of one run over all of these parts, byte for byte.
///
/// # Errors
/// [`MomentsError::Another`] if the files are not of one model, text and setting; [`MomentsError::Overlap`] if they share a chunk; what
/// [`MomentsFile::open`] and [`MomentsWriter`] refuse.
pub fn merge(paths: &[PathBuf], output: &Path, force: bool) -> Result<MomentsOrigin> {
    let files = paths.iter().map(|path| MomentsFile::open(path)).collect::<Result<Vec<_>>>()?;
    let Some((first, others)) = files.split_first() else {
        let found = "no files".to_owned();
        return Err(MomentsError::Another { path: output.into(), what: "number", expected: "1".into(), found }.into());
    };
    let inputs = |file: &MomentsFile| serde_json::to_string(&file.inputs).unwrap_or_default();
    for other in others {
        other.same("model", &first.origin.model, &other.origin.model)?;
        other.same("text or setting", &first.origin.text, &other.origin.text)?;
        other.same("choice of inputs", &inputs(first), &inputs(other))?;
    }
    let mut origin = first.origin.clone();
    origin.chunks = joined_chunks(&files)?;
    let read: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let writer = MomentsWriter::with(output, &origin, first.inputs.clone(), force, &read)?;
    for index in 0..first.inputs.len() {
        writer.write(index, sum(&files, index)?.as_ref())?;
    }
    writer.commit()?;
    Ok(origin)
}

fn joined_chunks(files: &[MomentsFile]) -> Result<Vec<i32>, MomentsError> {
    let mut all: Vec<(i32, &MomentsFile)> =
        files.iter().flat_map(|file| file.origin.chunks.iter().map(move |&chunk| (chunk, file))).collect();
    all.sort_by_key(|(chunk, _)| *chunk);
    if let Some(twice) = all.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let (path, other) = (twice[1].1.path.clone(), twice[0].1.path.clone());
        return Err(MomentsError::Overlap { path, other, chunk: twice[0].0 });
    }
    Ok(all.into_iter().map(|(chunk, _)| chunk).collect())
}

/// The sums of an input over all files that have rows of it.
fn sum(files: &[MomentsFile], index: usize) -> Result<Option<InputMoments>, MomentsError> {
    let mut total: Option<InputMoments> = None;
    for file in files {
        let Some(part) = file.moments(index) else { continue };
        let Some(total) = total.as_mut() else {
            total = Some(part);
            continue;
        };
        let power = |moments: &InputMoments| moments.blocks[0].sums[0].unit().power().to_string();
        file.same("unit", &power(total), &power(&part))?;
        let tensor = || file.inputs[index].weights.first().cloned().unwrap_or_default();
        total.rows.iter_mut().zip(&part.rows).for_each(|(all, own)| *all += own);
        for (all, own) in total.blocks[0].sums.iter_mut().zip(&part.blocks[0].sums) {
            all.merge(own).map_err(|OutOfRange| MomentsError::OutOfRange { tensor: tensor() })?;
        }
    }
    Ok(total)
}

/// The keys of a file.
struct Keys<'f> {
    path: &'f Path,
    keys: &'f Metadata,
}

impl Keys<'_> {
    fn refuse(&self, key: &'static str, expected: &'static str, found: impl Into<String>) -> MomentsError {
        MomentsError::Key { path: self.path.to_path_buf(), key, expected, found: found.into() }
    }

    fn origin(&self) -> Result<MomentsOrigin, MomentsError> {
        let (path, found) =
            (self.path.to_path_buf(), self.keys.get_str("general.type").map(std::borrow::Cow::into_owned));
        if found.as_deref() != Some(KIND) {
            return Err(MomentsError::Kind { path, expected: KIND, found });
        }
        let found = self.keys.get_u64("tcq4.moments.version");
        if found != Some(VERSION) {
            return Err(MomentsError::Version { path, expected: VERSION, found });
        }
        let text = |key: &'static str| {
            let found = self.keys.get_str(key).map(std::borrow::Cow::into_owned);
            found.ok_or_else(|| self.refuse(key, "a string", "none"))
        };
        let (key, count) = ("tcq4.moments.chunks", self.keys.get_u64("tcq4.moments.chunk_count"));
        let chunks = self.keys.get_i32_array(key).ok_or_else(|| self.refuse(key, "an array of i32", "none"))?;
        let count = count.and_then(|count| u32::try_from(count).ok());
        let count = count.ok_or_else(|| self.refuse("tcq4.moments.chunk_count", "a number of chunks", "none"))?;
        let fits = |&chunk: &i32| u32::try_from(chunk).is_ok_and(|chunk| chunk < count);
        if !chunks.is_sorted_by(|a, b| a < b) || !chunks.iter().all(fits) {
            return Err(self.refuse(key, "ascending places of chunks", format!("{chunks:?} of {count}")));
        }
        let datasets = self.keys.get_array("tcq4.moments.datasets").and_then(|array| array.to_string_vec());
        Ok(MomentsOrigin {
            model: text("tcq4.moments.model")?,
            text: text("tcq4.moments.text")?,
            chunks,
            chunk_count: count,
            datasets: datasets.unwrap_or_default(),
        })
    }

    fn inputs(&self) -> Result<Vec<Input>, MomentsError> {
        let (key, expected) = ("tcq4.moments.inputs", "inputs as JSON");
        let json = self.keys.get_str(key).ok_or_else(|| self.refuse(key, expected, "none"))?;
        let inputs: Vec<Input> =
            serde_json::from_str(&json).map_err(|error| self.refuse(key, expected, error.to_string()))?;
        let sound = |input: &Input| {
            let columns = input.columns > 0 && input.columns.is_multiple_of(LANES) && input.columns <= 1 << 24;
            columns && (1..=1 << 16).contains(&input.matrices) && !(input.per_matrix && input.matrices == 1)
        };
        match inputs.iter().find(|input| !sound(input)) {
            Some(bad) => Err(self.refuse(key, "a multiple of 32 columns and at least one matrix", format!("{bad:?}"))),
            None => Ok(inputs),
        }
    }
}
