//! The metadata of a converted file: that of the source, the file type, and the `tcq4.*` keys.

use std::collections::BTreeMap;

use super::keys::{KEY_ENCODER, KEY_RECIPE, KEY_REORDER, KEY_VERSION, VERSION, permutation_key, remove_own_keys};
use super::plan::{Conversion, PlannedTensor};
use super::record;
use crate::gguf::{Metadata, Source};
use crate::quant::Transform;
use crate::tcq::{Encoder, FORK_FTYPE_ID, FTYPE_ID};

/// The version of ggml's quantised formats that llama.cpp asks for.
const QUANTIZATION_VERSION: u32 = 2;

/// What the file should say about how it was made.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// The tile encoder.
    pub encoder: Encoder,
    /// The settings, as JSON.
    pub recipe: String,
    /// Further keys: of the calibration.
    pub calibration: Vec<(String, CalibrationValue)>,
}

/// A value of a `tcq4.calibration.*` or `quantize.imatrix.*` key.
#[derive(Debug, Clone)]
pub enum CalibrationValue {
    /// An unsigned number.
    Number(u32),
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
}

/// Builds the metadata of the output, but for the hashes, which are only known when all is written.
pub fn output_metadata(
    source: &Source,
    plan: &Conversion,
    transforms: &BTreeMap<String, Transform>,
    provenance: &Provenance,
) -> Metadata {
    let mut metadata = source.metadata().clone();
    remove_own_keys(&mut metadata);
    if plan.tensors.iter().any(PlannedTensor::is_tcq4) {
        metadata.set("general.file_type", if plan.fork_ids { FORK_FTYPE_ID } else { FTYPE_ID });
    }
    metadata.set("general.quantization_version", QUANTIZATION_VERSION);
    metadata.set(KEY_VERSION, VERSION);
    metadata.set(KEY_ENCODER, provenance.encoder.to_string());
    metadata.set(KEY_RECIPE, provenance.recipe.clone());
    for (key, value) in &provenance.calibration {
        match value {
            CalibrationValue::Number(number) => metadata.set(key, *number),
            CalibrationValue::Text(text) => metadata.set(key, text.clone()),
            CalibrationValue::Texts(texts) => metadata.set(key, &texts[..]),
        }
    }
    let tcq4 = plan.tensors.iter().filter(|t| t.is_tcq4());
    let orders: Vec<_> = tcq4.filter_map(|t| Some((&t.name, transforms.get(&t.name)?.runtime_order()?))).collect();
    metadata.set(KEY_REORDER, !orders.is_empty());
    for (name, order) in orders {
        metadata.set(&permutation_key(name), &order.indices().iter().map(|&i| i as i32).collect::<Vec<i32>>()[..]);
    }
    record::write(transforms, &mut metadata);
    metadata
}
