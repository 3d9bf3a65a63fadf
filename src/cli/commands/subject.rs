//! A model that is to be run: loaded as it is, or from a temporary copy where llama.cpp cannot read its tensors.

use std::path::Path;

use tempfile::TempDir;

use crate::cli::Session;
use crate::convert::{dequantize, is_tcq4};
use crate::error::{Error, Result};
use crate::gguf::{GgmlType, Source};
use crate::llama::{Model, ModelOptions};
use crate::tcq::Encoder;

/// A loaded model.
pub(super) struct Subject {
    pub(super) model: Model,
    /// Whether TCQ4 tensors were decoded into a temporary F16 copy.
    pub(super) decoded: bool,
    _copy: Option<TempDir>,
}

impl Subject {
    /// Loads the model at `path`; TCQ4 tensors are decoded into a temporary copy, which lives as long as this.
    ///
    /// # Errors
    /// What cannot be read, decoded or loaded.
    pub(super) fn open(session: &Session, path: &Path, gpu_layers: u32) -> Result<Self> {
        let source = Source::open(path)?;
        let options = ModelOptions { gpu_layers };
        let decoded = source.tensors().iter().any(|t| is_tcq4(&source, t));
        if !decoded {
            let model = Model::load(source.first_shard(), &options)?;
            return Ok(Self { model, decoded, _copy: None });
        }
        let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "create a folder in"))?;
        let copy = folder.path().join("decoded.gguf");
        dequantize(&source, &copy, GgmlType::F16, false, session.codec(Encoder::Default)?, &session.progress)?;
        Ok(Self { model: Model::load(&copy, &options)?, decoded, _copy: Some(folder) })
    }
}
