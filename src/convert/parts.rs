//! Divides a conversion among machines: which tensors a part holds, and what its file says about the whole. A part is a GGUF file of its own tensors
//! with all keys of the whole model; `merge_parts` puts parts together.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::batches::inputs;
use super::keys::KEY_SOURCE;
use super::plan::{Conversion, PlannedTensor};
use super::source_hashes::DIGITS;
use crate::error::PartsError;
use crate::gguf::{Metadata, Sharding, Source, TensorSpec};
use crate::util::shard::Shard;

/// `tcq4.part`: string, JSON of [`Shard`]; only in parts.
const KEY_PART: &str = "tcq4.part";
/// `tcq4.part.version`: string, the version that wrote the part.
const KEY_VERSION: &str = "tcq4.part.version";
/// `tcq4.part.sharding`: string, JSON of how the whole is divided into files.
const KEY_SHARDING: &str = "tcq4.part.sharding";
/// `tcq4.part.source`: array of strings, [`SourceHashes::tensors`]: of all tensors in the first part, of its own in any other.
const KEY_SOURCE_TENSORS: &str = "tcq4.part.source";
/// `tcq4.part.tensors`: array of strings, the tensors of the whole in their order.
const KEY_TENSORS: &str = "tcq4.part.tensors";

/// The tensors that are written to one of several files, from which the output is put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which file it is.
    pub shard: Shard,
    /// Its tensors, by their places in the plan, ascending.
    pub tensors: Vec<usize>,
}

impl Part {
    /// Divides a plan into parts that take about the same time; tensors with one input stay together, because they share work.
    pub fn of(source: &Source, plan: &Conversion, shard: Shard) -> Self {
        let mut items: Vec<Vec<usize>> =
            inputs(source, plan, u64::MAX).into_iter().map(|group| group.tensors).collect();
        let grouped: BTreeSet<usize> = items.iter().flatten().copied().collect();
        items.extend((0..plan.tensors.len()).filter(|at| !grouped.contains(at)).map(|at| vec![at]));
        let cost = |tensors: &[usize]| tensors.iter().map(|&at| cost(&plan.tensors[at])).sum::<u64>();
        let mut loads = vec![0; shard.count as usize];
        // The first part reads and hashes the whole source.
        loads[0] = HASH * plan.tensors.iter().map(|tensor| tensor.source_bytes).sum::<u64>();
        let mut tensors = deal(items, cost, &mut loads, shard.index as usize);
        tensors.sort_unstable();
        Self { shard, tensors }
    }

    /// Adds what a part says of itself to the keys of the whole.
    pub(super) fn describe(&self, metadata: &mut Metadata, specs: &[TensorSpec], sharding: &Sharding) {
        let json = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
        let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        metadata.set(KEY_PART, json(serde_json::to_string(&self.shard)));
        metadata.set(KEY_VERSION, env!("CARGO_PKG_VERSION"));
        metadata.set(KEY_SHARDING, json(serde_json::to_string(&Division::from(sharding))));
        metadata.set(KEY_TENSORS, &names[..]);
        let hashed = if self.shard.index == 0 { specs.len() } else { self.tensors.len() };
        set_source(metadata, &vec!["0".repeat(DIGITS); hashed]);
    }
}

/// Adds what a part knows of its source.
pub(super) fn set_source(metadata: &mut Metadata, tensors: &[String]) {
    metadata.set(KEY_SOURCE_TENSORS, tensors);
}

/// What reading and hashing a byte costs, in 64ths of making it TCQ4; measured like [`cost`], roughly.
const HASH: u64 = 3;

/// What a tensor costs, in the same unit. What ggml writes in blocks of 32 is far cheaper than its searches over 256; all else is copied.
fn cost(tensor: &PlannedTensor) -> u64 {
    let of_byte = match tensor.to.layout() {
        _ if tensor.is_tcq4() => 64,
        _ if tensor.to == tensor.from || tensor.to.is_float() => 2,
        Some(layout) if layout.block < 256 => 8,
        _ => 48,
    };
    of_byte * tensor.source_bytes
}

/// Deals items out, the most costly first, each to the file that has least; gives what comes to file `own`.
fn deal(mut items: Vec<Vec<usize>>, cost: impl Fn(&[usize]) -> u64, loads: &mut [u64], own: usize) -> Vec<usize> {
    items.sort_by_key(|item| (Reverse(cost(item)), item.first().copied()));
    let mut mine = Vec::new();
    for item in items {
        let least = (0..loads.len()).min_by_key(|&file| (loads[file], file)).unwrap_or(0);
        loads[least] += cost(&item);
        if least == own {
            mine.extend(item);
        }
    }
    mine
}

/// [`Sharding`] as it is written.
#[derive(Debug, Serialize, Deserialize)]
enum Division {
    Single,
    MaxBytes(u64),
    Counts(Vec<usize>),
}

impl From<&Sharding> for Division {
    fn from(sharding: &Sharding) -> Self {
        match sharding {
            Sharding::Single => Self::Single,
            Sharding::MaxBytes(bytes) => Self::MaxBytes(*bytes),
            Sharding::Counts(counts) => Self::Counts(counts.clone()),
        }
    }
}

impl From<Division> for Sharding {
    fn from(division: Division) -> Self {
        match division {
            Division::Single => Self::Single,
            Division::MaxBytes(bytes) => Self::MaxBytes(bytes),
            Division::Counts(counts) => Self::Counts(counts),
        }
    }
}

/// What a part says of itself.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) shard: Shard,
    pub(super) version: String,
    pub(super) sharding: Sharding,
    pub(super) tensors: Vec<String>,
    /// Hashes of the source: of all tensors if it is the first part, of its own else.
    pub(super) source: Vec<String>,
}

/// Whether a file is a part of a converted model.
pub fn is_part(file: &Source) -> bool {
    file.metadata().contains(KEY_PART)
}

/// Refuses a part where a model is needed.
///
/// # Errors
/// [`PartsError::Alone`].
pub(super) fn check_whole(file: &Source) -> Result<(), PartsError> {
    if !is_part(file) {
        return Ok(());
    }
    let shard = Description::read(file)?.shard.to_string();
    Err(PartsError::Alone { path: file.path().to_path_buf(), shard })
}

impl Description {
    /// Reads it.
    ///
    /// # Errors
    /// [`PartsError::Unusable`] if the file is no part.
    pub(super) fn read(file: &Source) -> Result<Self, PartsError> {
        let refuse = |key: &str| PartsError::Unusable {
            path: file.path().to_path_buf(),
            what: format!("`{key}` is missing or makes no sense"),
        };
        let text = |key: &'static str| file.metadata().get_str(key).ok_or_else(|| refuse(key));
        let shard: Shard = serde_json::from_str(&text(KEY_PART)?).map_err(|_| refuse(KEY_PART))?;
        let sharding: Division = serde_json::from_str(&text(KEY_SHARDING)?).map_err(|_| refuse(KEY_SHARDING))?;
        let texts = |key: &'static str| {
            file.metadata().get_array(key).and_then(|array| array.to_string_vec()).ok_or_else(|| refuse(key))
        };
        let (tensors, source) = (texts(KEY_TENSORS)?, texts(KEY_SOURCE_TENSORS)?);
        if shard.index >= shard.count || shard.count > Shard::MOST {
            return Err(refuse(KEY_PART));
        }
        let hashed = if shard.index == 0 { tensors.len() } else { file.tensors().len() };
        if source.len() != hashed {
            return Err(refuse(KEY_SOURCE_TENSORS));
        }
        Ok(Self { shard, version: text(KEY_VERSION)?.into_owned(), sharding: sharding.into(), tensors, source })
    }
}

/// Takes away what makes a file a part.
pub(super) fn remove_description(metadata: &mut Metadata) {
    for key in [KEY_PART, KEY_VERSION, KEY_SHARDING, KEY_SOURCE_TENSORS, KEY_TENSORS] {
        metadata.remove(key);
    }
}

/// Whether a key may differ between parts of one conversion, the hashes of tensors apart.
pub(super) fn is_own(key: &str) -> bool {
    [KEY_PART, KEY_SOURCE_TENSORS, KEY_SOURCE].contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_go_first_and_to_the_least_loaded() {
        let sizes = [5, 9, 1, 7, 3];
        let bytes = |item: &[usize]| item.iter().map(|&at| sizes[at]).sum::<u64>();
        let of = |loads: [u64; 2], own| deal((0..5).map(|at| vec![at]).collect(), bytes, &mut { loads }, own);
        // 9 | 7, 5 | then 3 to the first, 1 to the one that has 12 too, which comes first.
        assert_eq!((of([0, 0], 0), of([0, 0], 1)), (vec![1, 4, 2], vec![3, 0]));
        // What lies there already counts: 1 and 7, 5 | 9, 3, 1.
        assert_eq!((of([1, 0], 0), of([1, 0], 1)), (vec![3, 0], vec![1, 4, 2]));
    }
}
