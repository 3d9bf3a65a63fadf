//! A GGUF file in a few numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::show::show;
use crate::gguf::{Source, TensorInfo};

/// How much of a file is of one type.
#[derive(Debug, Clone, Serialize)]
pub struct TypeShare {
    /// ggml's name of the type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Number of weights.
    pub weights: u64,
    /// Bytes of data.
    pub bytes: u64,
}

/// One tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorRow {
    /// Its name.
    pub name: String,
    /// ggml's name of its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its dimensions in ggml's order, columns first.
    pub dims: Vec<u64>,
    /// Bytes of data.
    pub bytes: u64,
    /// Whether a run-time permutation of its columns is recorded.
    pub permuted: bool,
    /// The activation path that is recorded for it alone.
    pub activations: Option<String>,
}

/// What is in a GGUF file.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The files, shards in order.
    pub files: Vec<PathBuf>,
    /// GGUF version.
    pub version: u32,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// Bytes on disk.
    pub file_bytes: u64,
    /// Number of weights.
    pub weights: u64,
    /// Bits a weight over all tensors.
    pub bits_per_weight: f64,
    /// By type, the largest first.
    pub types: Vec<TypeShare>,
    /// Every metadata key with its value, long arrays shortened.
    pub metadata: Vec<(String, String)>,
    /// Every tensor in file order.
    pub tensors: Vec<TensorRow>,
}

/// Summarises an open model.
pub fn summarize(source: &Source) -> Summary {
    let metadata = source.metadata();
    let tensors = source.tensors();
    // Tensors of unknown types may claim any shape.
    let weights = tensors.iter().map(TensorInfo::elements).fold(0, u64::saturating_add);
    let bytes: u64 = tensors.iter().map(|t| t.bytes).sum();
    Summary {
        files: source.shards().map(PathBuf::from).collect(),
        version: source.version(),
        architecture: metadata.get_str("general.architecture").map(Cow::into_owned),
        name: metadata.get_str("general.name").map(Cow::into_owned),
        file_bytes: source.total_bytes(),
        weights,
        bits_per_weight: bytes as f64 * 8.0 / (weights.max(1)) as f64,
        types: shares(source),
        metadata: metadata.iter().map(|(key, value)| (key.to_string(), show(&value))).collect(),
        tensors: tensors.iter().map(|t| row(source, t)).collect(),
    }
}

fn shares(source: &Source) -> Vec<TypeShare> {
    let mut by_type: BTreeMap<u32, TypeShare> = BTreeMap::new();
    for t in source.tensors() {
        let share = by_type.entry(t.ty.0).or_insert_with(|| TypeShare {
            ty: source.type_name(t),
            tensors: 0,
            weights: 0,
            bytes: 0,
        });
        share.tensors += 1;
        share.weights = share.weights.saturating_add(t.elements());
        share.bytes += t.bytes;
    }
    let mut shares: Vec<_> = by_type.into_values().collect();
    shares.sort_by_key(|s| std::cmp::Reverse(s.bytes));
    shares
}

fn row(source: &Source, tensor: &TensorInfo) -> TensorRow {
    TensorRow {
        name: tensor.name.clone(),
        ty: source.type_name(tensor),
        dims: tensor.dims.clone(),
        bytes: tensor.bytes,
        permuted: source.metadata().contains(&format!("tcq4.{}.perm", tensor.name)),
        activations: source.metadata().get_str(&format!("tcq4.{}.activations", tensor.name)).map(Cow::into_owned),
    }
}
