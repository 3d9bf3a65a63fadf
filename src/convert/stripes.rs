//! Single stripes of eight rows of a converted file, or of one in the making: what `analysis` looks at.

use std::collections::BTreeMap;

use bytemuck::Zeroable;

use super::decode::TcqTensor;
use super::encode::{RowRun, read_transformed};
use super::keys::{KEY_RECIPE, permutations};
use super::record;
use crate::error::{ConvertError, Result};
use crate::gguf::{GgmlType, Source, TensorInfo};
use crate::quant::Transform;
use crate::tcq::{CHUNK, Codec, TILE_ROWS, Tile};

/// What was done to the tensors of a converted file before they were encoded, run-time permutations included.
///
/// # Errors
/// Records that do not fit the file.
pub fn recorded_transforms(file: &Source) -> Result<BTreeMap<String, Transform>> {
    record::read(file, &permutations(file)?)
}

/// How a converted file says it was made, as far as it says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipe {
    /// The channel scales: `none`, `closed-form`, `awq`.
    pub scales: Option<String>,
    /// The order of the channels.
    pub order: Option<String>,
    /// The tile encoder.
    pub encoder: Option<String>,
}

impl Recipe {
    /// Reads it; what is missing or not understood is left out.
    pub fn of(file: &Source) -> Self {
        let recipe: serde_json::Value =
            file.metadata().get_str(KEY_RECIPE).and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
        let text = |key: &str| recipe.get(key).and_then(|value| value.as_str()).map(str::to_string);
        let scales = match recipe.get("scales") {
            Some(serde_json::Value::Object(of)) => of.keys().next().cloned(),
            _ => text("scales"),
        };
        Self { scales, order: text("order"), encoder: text("encoder") }
    }
}

/// Eight rows of a tensor as they are encoded: transformed and rotated, and the tiles that stand for them.
#[derive(Debug, Clone)]
pub struct Stripe {
    /// The transformed rows, rotated.
    pub rotated: Vec<f32>,
    /// One tile for each 256 columns.
    pub tiles: Vec<Tile>,
}

/// A tensor of the source and where its tiles come from.
#[derive(Debug, Clone, Copy)]
pub struct Stripes<'a> {
    source: &'a Source,
    tensor: &'a TensorInfo,
    transform: &'a Transform,
    codec: Codec,
    encoded: Option<TcqTensor<'a>>,
}

impl<'a> Stripes<'a> {
    /// Prepares to encode rows of `tensor` in memory, or, where `file` holds the tensor in TCQ4, to read them from there.
    ///
    /// # Errors
    /// A file that holds the tensor in another shape, or bytes that are not TCQ4.
    pub fn open(
        source: &'a Source,
        tensor: &'a TensorInfo,
        transform: &'a Transform,
        file: Option<&'a Source>,
        codec: Codec,
    ) -> Result<Self> {
        let encoded = match file.and_then(|file| Some((file, file.tensor(&tensor.name)?))) {
            Some((file, found)) if found.dims == tensor.dims => Some(TcqTensor::open(file, found, codec)?),
            Some((file, found)) => {
                return Err(ConvertError::AnotherModel {
                    path: source.path().to_path_buf(),
                    other: file.path().to_path_buf(),
                    tensor: tensor.name.clone(),
                    expected: format!("shape {:?}", found.dims),
                    found: format!("shape {:?}", tensor.dims),
                }
                .into());
            }
            None => None,
        };
        Ok(Self { source, tensor, transform, codec, encoded })
    }

    /// Gives the stripe from row `first` (a multiple of 8, over all matrices of the tensor) on.
    ///
    /// # Errors
    /// Weights that cannot be read or encoded; tiles that do not decode.
    pub fn read(&self, first: u64) -> Result<Stripe> {
        let columns = self.tensor.columns() as usize;
        let mut rotated = vec![0.0; columns * TILE_ROWS];
        read_transformed(self.source, self.tensor, self.transform, first, &mut rotated)?;
        if let Some(encoded) = &self.encoded {
            self.codec.fwht(&mut rotated);
            return Ok(Stripe { rotated, tiles: encoded.stripe(first)? });
        }
        let mut tiles = vec![Tile::zeroed(); columns / CHUNK];
        let run = RowRun {
            source: self.source,
            tensor: self.tensor,
            transform: Some(self.transform),
            to: GgmlType::TCQ4_K32,
            importance: None,
            first,
            rows: TILE_ROWS as u64,
        };
        self.codec.encode_rows(&mut rotated, columns, &mut tiles).map_err(|e| run.defect(&e, 0))?;
        Ok(Stripe { rotated, tiles })
    }
}
