//! Sequential conversion: blocks in batches, each measured behind the quantised weights and activations of those before it.
//!
//! The loaded model keeps its own basis: quantised weights are decoded and taken back through scales and orders before they replace the
//! model's, and the inputs of their multiplications are rounded in the basis of the quantised model. Within a batch every input is measured with
//! the model as the batches before left it. What is measured is the input itself, not rounded: rounding it is the runtime's doing, no choice
//! of codes can undo it, and counted in it would act as damping of the second moment.

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable;
use xxhash_rust::xxh3::Xxh3;

use super::batches::{Batch, Group, divided, inputs};
use super::checkpoint::{Checkpoint, Done, Folder, places};
use super::compensate::{By, Compensation};
use super::encode::Encoded;
use super::plan::Conversion;
use super::rows::{Rows, Used, Written};
use super::run::Job;
use super::units::{RowUnit, in_order, run_some};
use crate::calib::InputMoments;
use crate::calib::store::fingerprint;
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Plan, Source};
use crate::llama;
use crate::model::TensorName;
use crate::quant::Transform;
use crate::tcq::{CHUNK, Codec, TILE_ROWS, Tile};
use crate::util::progress::{Progress, Unit};

/// Batches that a model is cut into at least, where nobody says how many blocks one has: with one batch nothing would be sequential.
const BATCHES: usize = 8;

/// A running model that becomes the quantised one, batch by batch. Its second moments are measured as it is at the time.
pub trait Stream: Sync {
    /// Replaces bytes of a weight, in the type that the source has, from byte `offset` of its data on; false if the model never reads it.
    ///
    /// # Errors
    /// What keeps the weight from being replaced.
    fn replace(&self, tensor: &str, offset: u64, bytes: &[u8]) -> Result<bool>;

    /// From here on, rounds what enters the multiplication by `tensor` as the runtime will, which has the tensor after `transform`.
    fn round(&self, tensor: &str, transform: &Transform);
}

/// How a sequential conversion is done.
pub struct Sequential<'a> {
    /// The model.
    pub stream: &'a dyn Stream,
    /// Blocks of a batch.
    pub blocks: u32,
    /// What is kept on the way.
    pub checkpoint: Checkpoint,
}

/// The blocks of a batch where nobody says: as many as have room for their second moments in `memory`, but no more than make eight batches.
pub fn layer_batch(source: &Source, plan: &Conversion, memory: u64) -> u32 {
    let mut blocks: BTreeMap<Option<u32>, u64> = BTreeMap::new();
    for group in inputs(source, plan, memory) {
        *blocks.entry(block(plan, &group)).or_default() += group.bytes();
    }
    let largest = blocks.values().copied().max().unwrap_or(0).max(1);
    let room = u32::try_from(memory / largest).unwrap_or(u32::MAX);
    room.clamp(1, u32::try_from(blocks.len().div_ceil(BATCHES)).unwrap_or(u32::MAX).max(1))
}

/// What a sequential conversion costs: runs of the text, and bytes of memory beside those of [`super::working_memory`]; with 0 blocks a batch as many
/// as [`layer_batch`] says.
pub fn sequential_cost(source: &Source, plan: &Conversion, blocks: u32, memory: u64) -> (usize, u64) {
    let blocks = if blocks > 0 { blocks } else { layer_batch(source, plan, memory) };
    let stages = stages(plan, inputs(source, plan, memory), blocks, memory);
    let parts = || stages.iter().flat_map(|stage| &stage.parts);
    (parts().count(), parts().map(Batch::bytes).max().unwrap_or(0))
}

/// The block that a group's input belongs to.
fn block(plan: &Conversion, group: &Group) -> Option<u32> {
    TensorName::parse(&plan.tensors[group.tensors[0]].name).block
}

/// A batch of blocks, in parts whose second moments fit into memory together.
struct Stage {
    parts: Vec<Batch>,
}

impl Stage {
    fn tensors(&self) -> BTreeSet<usize> {
        self.parts.iter().flat_map(Batch::tensors).collect()
    }
}

/// Cuts inputs into stages of `blocks` blocks, in the order of the blocks; what belongs to none comes last.
fn stages(plan: &Conversion, groups: Vec<Group>, blocks: u32, memory: u64) -> Vec<Stage> {
    let mut by_block: BTreeMap<u32, Vec<Group>> = BTreeMap::new();
    for group in groups {
        by_block.entry(block(plan, &group).unwrap_or(u32::MAX)).or_default().push(group);
    }
    let mut all = by_block.into_values().peekable();
    let mut stages = Vec::new();
    while all.peek().is_some() {
        let groups = all.by_ref().take(blocks.max(1) as usize).flatten().collect();
        stages.push(Stage { parts: divided(groups, memory) });
    }
    stages
}

/// What the bytes of an output depend on besides the source's rows, in a line.
fn run_name(job: &Job<'_>, plan: &Plan, sequential: &Sequential<'_>) -> String {
    let mut hash = Xxh3::new();
    (0..plan.file_count()).for_each(|file| hash.update(&plan.header(file)));
    for (name, transform) in job.transforms {
        hash.update(name.as_bytes());
        hash.update(format!("{transform:?}").as_bytes());
    }
    let (model, blocks, llama) = (fingerprint(job.source), sequential.blocks, llama::about());
    format!("model {model}, output {:032x}, {blocks} blocks a batch, {llama}", hash.digest128())
}

/// Writes what is not compensated, then stage after stage of what is; results in the order of the units.
pub(super) fn write(
    rows: &Rows<'_>,
    compensation: &Compensation<'_>,
    sequential: &Sequential<'_>,
    progress: &dyn Progress,
) -> Result<(Vec<Written>, Used)> {
    let folder = Folder::open(&sequential.checkpoint, run_name(rows.job, rows.plan, sequential))?;
    let groups = inputs(rows.job.source, rows.job.plan, compensation.memory);
    let stages = stages(rows.job.plan, groups, sequential.blocks, compensation.memory);
    progress.note(&format!(
        "sequential: {} batches of at most {} blocks, each kept in {} until the output is complete",
        stages.len(),
        sequential.blocks,
        sequential.checkpoint.folder.display()
    ));
    let mut work = Work {
        rows,
        compensation,
        sequential,
        folder,
        progress,
        written: Vec::new(),
        used: Used::new(),
        deaf: BTreeSet::new(),
    };
    work.written.resize_with(rows.units.len(), || None);
    work.rest(&stages)?;
    for (index, stage) in stages.iter().enumerate() {
        let label = format!("batch {} of {}", index + 1, stages.len());
        work.stage(index, stage, &label)?;
    }
    if !work.deaf.is_empty() {
        let names = work.deaf.iter().map(|&at| &*rows.job.plan.tensors[at].name).collect::<Vec<_>>().join(", ");
        progress
            .note(&format!("the model was measured with these tensors unquantised, as it never reads them: {names}"));
    }
    Ok((work.written.into_iter().flatten().collect(), work.used))
}

/// A sequential conversion under way.
struct Work<'a> {
    rows: &'a Rows<'a>,
    compensation: &'a Compensation<'a>,
    sequential: &'a Sequential<'a>,
    folder: Folder<'a>,
    progress: &'a dyn Progress,
    written: Vec<Option<Written>>,
    used: Used,
    /// Tensors that the model does not read.
    deaf: BTreeSet<usize>,
}

impl Work<'_> {
    /// The units of these tensors, by their place in the list of all.
    fn units_of(&self, tensors: &BTreeSet<usize>) -> Vec<usize> {
        (0..self.rows.units.len()).filter(|&at| tensors.contains(&self.rows.units[at].tensor)).collect()
    }

    fn source_bytes(&self, unit: &RowUnit) -> u64 {
        let tensor = &self.rows.job.source.tensors()[unit.tensor];
        unit.rows * (tensor.bytes / tensor.rows())
    }

    fn begin(&self, label: &str, units: &[usize]) {
        let bytes = units.iter().map(|&at| self.source_bytes(&self.rows.units[at])).sum();
        self.progress.begin(label, bytes, Unit::Bytes);
    }

    /// Writes all tensors that belong to no stage, and lets the model have them.
    fn rest(&mut self, stages: &[Stage]) -> Result<()> {
        let staged: BTreeSet<usize> = stages.iter().flat_map(Stage::tensors).collect();
        let tensors: BTreeSet<usize> =
            (0..self.rows.job.plan.tensors.len()).filter(|at| !staged.contains(at)).collect();
        let own = self.units_of(&tensors);
        let units: Vec<RowUnit> = own.iter().map(|&at| self.rows.units[at]).collect();
        self.begin("quantize the rest", &own);
        let results = run_some(
            &units,
            self.progress,
            |unit| self.source_bytes(unit),
            |unit| {
                let encoded = self.rows.encode(unit, None)?;
                let written = self.rows.store(unit, &encoded)?;
                Ok((written, self.replace(unit, &encoded.bytes)?))
            },
        )?;
        self.progress.end();
        self.keep(own, results);
        self.round(&tensors);
        Ok(())
    }

    /// Remembers what became of units, and which of their tensors the model does not read.
    fn keep(&mut self, units: Vec<usize>, results: Vec<(Written, bool)>) {
        for (at, (written, heard)) in units.into_iter().zip(results) {
            self.written[at] = Some(written);
            if !heard {
                self.deaf.insert(self.rows.units[at].tensor);
            }
        }
    }

    /// From here on, the inputs of those of these tensors that are TCQ4 are rounded.
    fn round(&self, tensors: &BTreeSet<usize>) {
        let identity = Transform::default();
        for &at in tensors {
            let planned = &self.rows.job.plan.tensors[at];
            if planned.is_tcq4() {
                self.sequential.stream.round(&planned.name, self.rows.transforms[at].as_deref().unwrap_or(&identity));
            }
        }
    }

    /// Quantises a stage, unless that is done, and lets the output and the model have it.
    fn stage(&mut self, index: usize, stage: &Stage, label: &str) -> Result<()> {
        let tensors = stage.tensors();
        let own = self.units_of(&tensors);
        let bytes =
            |unit: &RowUnit| unit.rows * (self.rows.plan.tensor_bytes(unit.tensor) / self.rows.tensor(unit).rows());
        let units: Vec<(RowUnit, u64)> =
            own.iter().map(|&at| (self.rows.units[at], bytes(&self.rows.units[at]))).collect();
        let done = if let Some(done) = self.folder.load(index, &units)? {
            self.progress.note(&format!("{label} was done before"));
            done
        } else {
            self.quantise(index, stage, &units, label)?;
            self.folder.load(index, &units)?.ok_or_else(|| self.folder.vanished(index))?
        };
        let results = self.adopt(&own, &done)?;
        self.keep(own, results);
        self.used.extend(done.used);
        self.round(&tensors);
        Ok(())
    }

    /// Quantises a stage into its file.
    fn quantise(&self, index: usize, stage: &Stage, units: &[(RowUnit, u64)], label: &str) -> Result<()> {
        let (job, places) = (self.rows.job, places(units));
        let total = units.iter().map(|(_, bytes)| bytes).sum();
        let file = self.folder.begin(index, total)?;
        let mut written: Vec<Option<Written>> = units.iter().map(|_| None).collect();
        let mut used = Used::new();
        for part in &stage.parts {
            let moments = part.measure(job.plan, &self.rows.transforms, self.compensation)?;
            self.begin(&format!("quantize {label}"), &self.units_of(&part.tensors().collect()));
            for (group, moments) in part.groups.iter().zip(moments) {
                let save = |at: usize, encoded: &Encoded| file.write_at(&encoded.bytes, places[at].0);
                for (at, result) in self.round_group(group, moments.as_ref(), units, save)? {
                    written[at] = Some(result);
                }
                if let Some(moments) = &moments {
                    used.extend(group.tensors.iter().map(|&tensor| (tensor, group.used(moments))));
                }
            }
            self.progress.end();
        }
        let written = units.iter().zip(written).filter_map(|((unit, _), written)| Some((*unit, written?)));
        self.folder.finish(file, index, total, (written, used))
    }

    fn transform(&self, group: &Group) -> Option<&Transform> {
        self.rows.transforms[group.tensors[0]].as_deref()
    }

    /// Quantises the rows of one input, those of each matrix by its own second moment where there are such.
    fn round_group(
        &self,
        group: &Group,
        moments: Option<&InputMoments>,
        units: &[(RowUnit, u64)],
        save: impl Fn(usize, &Encoded) -> Result<()> + Sync,
    ) -> Result<Vec<(usize, Written)>> {
        let mut all = Vec::new();
        for matrix in group.parts(moments) {
            let method = (self.rows.job.codec, self.compensation);
            let shape = (self.rows.job.plan, self.transform(group));
            let curvatures = moments.and_then(|moments| group.curvatures((moments, matrix), shape, method));
            let by = curvatures.as_ref().map(|curvatures| By::Curvature(curvatures, self.compensation.rounding));
            let is_own = |unit: &RowUnit| {
                group.tensors.contains(&unit.tensor) && matrix.is_none_or(|matrix| self.rows.matrix(unit) == matrix)
            };
            let own: Vec<usize> = (0..units.len()).filter(|&at| is_own(&units[at].0)).collect();
            let results = in_order(&own, |&at| {
                self.go_on()?;
                let encoded = self.rows.encode(&units[at].0, by.as_ref())?;
                save(at, &encoded)?;
                self.progress.advance(self.source_bytes(&units[at].0));
                Ok(Written::of(&encoded))
            })?;
            all.extend(own.into_iter().zip(results));
        }
        Ok(all)
    }

    /// Gives the rows of a stage that is done to the output and to the model.
    fn adopt(&self, own: &[usize], done: &Done) -> Result<Vec<(Written, bool)>> {
        let places: Vec<usize> = (0..own.len()).collect();
        in_order(&places, |&place| {
            self.go_on()?;
            let unit = &self.rows.units[own[place]];
            let (written, bytes) = done.read(place)?;
            self.rows.put(unit, &bytes)?;
            Ok((written, self.replace(unit, &bytes)?))
        })
    }

    fn go_on(&self) -> Result<()> {
        if self.progress.interrupted() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Lets the model have rows of the output, in its own basis and type; false if it does not read the tensor.
    fn replace(&self, unit: &RowUnit, bytes: &[u8]) -> Result<bool> {
        let (tensor, planned) = (self.rows.tensor(unit), &self.rows.job.plan.tensors[unit.tensor]);
        let transform = self.rows.transforms[unit.tensor].as_deref();
        let kept = planned.to == tensor.ty && (tensor.ty.is_float() || transform.is_none());
        if kept {
            return Ok(true);
        }
        let columns = tensor.columns() as usize;
        let mut values = decode(bytes, planned.to, columns, unit.rows as usize, self.rows.job.codec)?;
        if let Some(transform) = transform {
            transform.undo(columns, unit.first as usize, &mut values);
        }
        let bytes = self.rows.run(unit).encode_as(tensor.ty, &values)?;
        let row_bytes = bytes.len() / unit.rows as usize;
        if transform.is_none_or(|transform| transform.row_order.is_none()) {
            return self.sequential.stream.replace(&tensor.name, unit.first * row_bytes as u64, &bytes);
        }
        let mut heard = true;
        for (offset, row) in bytes.chunks_exact(row_bytes).enumerate() {
            let to = unit.first as usize + offset;
            let source = transform.map_or(to, |transform| transform.source_row(to));
            heard &= self.sequential.stream.replace(&tensor.name, (source * row_bytes) as u64, row)?;
        }
        Ok(heard)
    }
}

/// Rows of an output as floats; rotations are undone, transforms are not.
fn decode(bytes: &[u8], ty: GgmlType, columns: usize, rows: usize, codec: Codec) -> Result<Vec<f32>> {
    let mut values = vec![0.0; columns * rows];
    if ty == GgmlType::TCQ4_K32 {
        let mut tiles = vec![Tile::zeroed(); rows / TILE_ROWS * (columns / CHUNK)];
        bytemuck::cast_slice_mut(&mut tiles).copy_from_slice(bytes);
        let stripes = tiles.chunks_exact(columns / CHUNK).zip(values.chunks_exact_mut(TILE_ROWS * columns));
        stripes.for_each(|(tiles, rows)| codec.decode_rows(tiles, columns, rows));
    } else {
        llama::dequantize_rows(ty.0, bytes, columns, &mut values)?;
    }
    Ok(values)
}
