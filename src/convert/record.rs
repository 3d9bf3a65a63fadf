//! Keeps in the file what was done to its tensors before they were encoded, so that `verify --against` can do the same to the source.
//!
//! `tcq4.transforms` (string, JSON) names for every changed tensor the vectors that changed it; vector `n` is the array `tcq4.vector.n`. A
//! vector that is the reciprocal of another, as the scale of an activation's readers is of its maker's, is not stored twice.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::error::{ConvertError, Result};
use crate::gguf::{Metadata, Source};
use crate::math::Permutation;
use crate::quant::Transform;

const KEY: &str = "tcq4.transforms";

fn vector_key(index: usize) -> String {
    format!("tcq4.vector.{index}")
}

/// A stored vector, or the reciprocals of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Reference {
    Vector(usize),
    Reciprocal { reciprocal: usize },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    column_scale: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    row_scale: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    columns: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    row_order: Option<Reference>,
}

/// The vectors met so far, by their bits.
struct Pool<'m> {
    metadata: &'m mut Metadata,
    known: HashMap<Vec<u32>, usize>,
}

impl Pool<'_> {
    fn scale(&mut self, scale: &[f32]) -> Reference {
        let bits = |v: f32| v.to_bits();
        let own: Vec<u32> = scale.iter().copied().map(bits).collect();
        let reciprocal: Vec<u32> = scale.iter().map(|&v| bits(1.0 / v)).collect();
        let exact = scale.iter().all(|&v| 1.0 / (1.0 / v) == v);
        match (self.known.get(&own), self.known.get(&reciprocal)) {
            (Some(&index), _) => Reference::Vector(index),
            (None, Some(&reciprocal)) if exact => Reference::Reciprocal { reciprocal },
            _ => {
                let index = self.remember(own);
                self.metadata.set(&vector_key(index), scale);
                Reference::Vector(index)
            }
        }
    }

    fn order(&mut self, order: &Permutation) -> Reference {
        let own = order.indices().to_vec();
        let known = self.known.get(&own).copied();
        Reference::Vector(known.unwrap_or_else(|| {
            let index = self.remember(own);
            self.metadata.set(&vector_key(index), &order.indices().iter().map(|&i| i as i32).collect::<Vec<i32>>()[..]);
            index
        }))
    }

    fn remember(&mut self, bits: Vec<u32>) -> usize {
        let index = self.known.len();
        self.known.insert(bits, index);
        index
    }
}

/// Records `transforms`; a run-time permutation is not repeated here, its own key holds it.
pub(super) fn write(transforms: &BTreeMap<String, Transform>, metadata: &mut Metadata) {
    let mut pool = Pool { metadata, known: HashMap::new() };
    let mut entries = BTreeMap::new();
    // Rows first: the makers' vectors are the ones whose reciprocals the readers take.
    let mut ordered: Vec<_> = transforms.iter().filter(|(_, t)| !t.is_identity()).collect();
    ordered.sort_by_key(|(name, transform)| (transform.row_scale.is_none() && !name.contains("norm"), name.as_str()));
    for (name, transform) in ordered {
        let folded = transform.columns.as_ref().filter(|_| !transform.runtime_perm);
        let row_scale = transform.row_scale.as_deref().map(|v| pool.scale(v));
        let column_scale = transform.column_scale.as_deref().map(|v| pool.scale(v));
        let columns = folded.map(|p| pool.order(p));
        let row_order = transform.row_order.as_ref().map(|p| pool.order(p));
        entries.insert(name, Entry { column_scale, row_scale, columns, row_order });
    }
    if let Ok(json) = serde_json::to_string(&entries)
        && !entries.is_empty()
    {
        pool.metadata.set(KEY, json);
    }
}

/// What was done to the tensors of a file, run-time permutations included.
///
/// # Errors
/// Records that do not fit the file.
pub(super) fn read(file: &Source, permutations: &BTreeMap<String, Permutation>) -> Result<BTreeMap<String, Transform>> {
    read_of(file, file, permutations)
}

/// As [`read`], for the tensors of `model`, of which the file may hold only some.
///
/// # Errors
/// As there.
pub(super) fn read_of(
    file: &Source,
    model: &Source,
    permutations: &BTreeMap<String, Permutation>,
) -> Result<BTreeMap<String, Transform>> {
    let metadata = file.metadata();
    let fail = |problem: String| ConvertError::Damaged { path: file.path().to_path_buf(), tensor: KEY.into(), problem };
    let entries: BTreeMap<String, Entry> = match metadata.get_str(KEY) {
        Some(json) => serde_json::from_str(&json).map_err(|e| fail(e.to_string()))?,
        None => BTreeMap::new(),
    };
    let mut transforms = BTreeMap::new();
    for (name, entry) in entries {
        let transform = restore(metadata, &entry)
            .ok_or_else(|| fail(format!("the vectors of `{name}` are missing or of another kind")))?;
        let Some(info) = model.tensor(&name) else { return Err(fail(format!("`{name}` is not in the file")).into()) };
        check_shape(&transform, info.columns(), info.rows()).map_err(|problem| fail(format!("`{name}`: {problem}")))?;
        transforms.insert(name, transform);
    }
    for (name, permutation) in permutations {
        let transform: &mut Transform = transforms.entry(name.clone()).or_default();
        transform.columns = Some(permutation.clone());
        transform.runtime_perm = true;
    }
    Ok(transforms)
}

fn floats(metadata: &Metadata, index: usize) -> Option<Vec<f32>> {
    let values = metadata.get_array(&vector_key(index))?.to_f64_vec()?;
    Some(values.into_iter().map(|v| v as f32).collect())
}

fn restore(metadata: &Metadata, entry: &Entry) -> Option<Transform> {
    let scale = |reference: Option<Reference>| match reference {
        None => Some(None),
        Some(Reference::Vector(index)) => floats(metadata, index).map(Some),
        Some(Reference::Reciprocal { reciprocal }) => {
            Some(Some(floats(metadata, reciprocal)?.iter().map(|v| 1.0 / v).collect()))
        }
    };
    let order = |reference: Option<Reference>| match reference {
        None => Some(None),
        Some(Reference::Vector(index)) => {
            let indices: Vec<i64> = metadata.get_i32_array(&vector_key(index))?.iter().map(|&i| i64::from(i)).collect();
            Permutation::new(&indices).ok().map(Some)
        }
        Some(Reference::Reciprocal { .. }) => None,
    };
    Some(Transform {
        column_scale: scale(entry.column_scale)?,
        row_scale: scale(entry.row_scale)?,
        columns: order(entry.columns)?,
        row_order: order(entry.row_order)?,
        runtime_perm: false,
    })
}

fn check_shape(transform: &Transform, columns: u64, rows: u64) -> std::result::Result<(), String> {
    let lengths = [
        (transform.column_scale.as_ref().map(Vec::len), columns, "column scales"),
        (transform.row_scale.as_ref().map(Vec::len), rows, "row scales"),
        (transform.columns.as_ref().map(Permutation::len), columns, "columns"),
        (transform.row_order.as_ref().map(Permutation::len), rows, "rows"),
    ];
    match lengths.iter().find(|(found, wanted, _)| found.is_some_and(|n| n as u64 != *wanted)) {
        Some((found, wanted, what)) => Err(format!("{} {what} for {wanted}", found.unwrap_or(0))),
        None => Ok(()),
    }
}
