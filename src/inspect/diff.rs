//! What changed from one GGUF file to another: keys, tensors, shapes, types and bytes.

use rayon::prelude::*;
use serde::Serialize;

use super::show::show;
use crate::gguf::{Source, TensorInfo};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Change {
    /// Only the first file has it.
    Removed {
        /// Key or tensor.
        name: String,
    },
    /// Only the second file has it.
    Added {
        /// Key or tensor.
        name: String,
    },
    /// Both have it, with other values.
    Changed {
        /// Key or tensor.
        name: String,
        /// In the first file.
        from: String,
        /// In the second file.
        to: String,
    },
}

/// All differences of two files.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Diff {
    /// Of metadata keys.
    pub metadata: Vec<Change>,
    /// Of tensors.
    pub tensors: Vec<Change>,
    /// Number of tensors that are the same to the byte.
    pub same_tensors: u64,
}

impl Diff {
    /// Whether the two hold the same.
    pub fn is_empty(&self) -> bool {
        self.metadata.is_empty() && self.tensors.is_empty()
    }
}

/// Compares two open models.
pub fn diff(a: &Source, b: &Source) -> Diff {
    let changes: Vec<Option<Change>> = a.tensors().par_iter().map(|t| tensor_change(a, b, t)).collect();
    let same_tensors = changes.iter().filter(|c| c.is_none()).count() as u64;
    let added =
        b.tensors().iter().filter(|t| a.tensor(&t.name).is_none()).map(|t| Change::Added { name: t.name.clone() });
    Diff {
        metadata: metadata_changes(a, b),
        tensors: changes.into_iter().flatten().chain(added).collect(),
        same_tensors,
    }
}

fn metadata_changes(a: &Source, b: &Source) -> Vec<Change> {
    let (a, b) = (a.metadata(), b.metadata());
    let change = |(key, from): (&str, crate::gguf::Value<'_>)| match b.get(key) {
        None => Some(Change::Removed { name: key.to_string() }),
        Some(to) if to == from => None,
        Some(to) => Some(Change::Changed { name: key.to_string(), from: show(&from), to: show(&to) }),
    };
    let added = b.iter().filter(|(key, _)| !a.contains(key)).map(|(key, _)| Change::Added { name: key.to_string() });
    a.iter().filter_map(change).chain(added).collect()
}

fn tensor_change(a: &Source, b: &Source, tensor: &TensorInfo) -> Option<Change> {
    let name = tensor.name.clone();
    let Some(other) = b.tensor(&tensor.name) else { return Some(Change::Removed { name }) };
    let describe = |file: &Source, t: &TensorInfo| format!("{} {:?}", file.type_name(t), t.dims);
    let (from, to) = (describe(a, tensor), describe(b, other));
    if from != to {
        return Some(Change::Changed { name, from, to });
    }
    let (x, y) = (a.data(tensor), b.data(other));
    let differing = x.iter().zip(y).filter(|(x, y)| x != y).count();
    let change = (differing > 0).then(|| Change::Changed {
        name,
        from: from.clone(),
        to: format!("{differing} of {} bytes differ", x.len()),
    });
    a.release(tensor, 0..x.len());
    b.release(other, 0..y.len());
    change
}
