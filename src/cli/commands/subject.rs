//! A model that is to be run: loaded as it is, or from a temporary copy where llama.cpp cannot read its tensors.

use std::path::Path;

use tempfile::TempDir;

use crate::cli::Session;
use crate::convert::{dequantize, is_tcq4};
use crate::device::{Gpu, TileDecoder};
use crate::error::{Error, EvalError, Result};
use crate::gguf::{GgmlType, Source};
use crate::llama::{Model, ModelOptions, knows_tcq4};
use crate::tcq::Encoder;
use crate::util::units::Bytes;

/// A loaded model.
pub(super) struct Subject {
    pub(super) model: Model,
    /// Whether TCQ4 tensors were decoded into a temporary F16 copy.
    pub(super) decoded: bool,
    _copy: Option<TempDir>,
}

impl Subject {
    /// Loads the model at `path`. TCQ4 tensors that the linked llama.cpp does not run are decoded into a temporary copy, which lives
    /// as long as this, on a `decoder` if there is one; with `plain` they are decoded in any case.
    ///
    /// # Errors
    /// What cannot be read, decoded or loaded; too little space for the copy.
    pub(super) fn open(
        session: &Session,
        path: &Path,
        gpu_layers: u32,
        plain: bool,
        decoder: Option<&Gpu>,
    ) -> Result<Self> {
        Self::of(session, &Source::open(path)?, gpu_layers, plain, decoder)
    }

    /// As [`Self::open`], for a file whose metadata has been read.
    pub(super) fn of(
        session: &Session,
        source: &Source,
        gpu_layers: u32,
        plain: bool,
        decoder: Option<&Gpu>,
    ) -> Result<Self> {
        let options = ModelOptions { gpu_layers, ..ModelOptions::default() };
        let runs_here = |ty| ty == GgmlType::TCQ4_K32 && knows_tcq4() && !plain;
        let decoded = source.tensors().iter().any(|t| is_tcq4(source, t) && !runs_here(t.ty));
        if !decoded {
            let model = Model::load(source.first_shard(), &options)?;
            return Ok(Self { model, decoded, _copy: None });
        }
        let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "create a folder in"))?;
        check_space(session, folder.path(), copy_bytes(source))?;
        let copy = folder.path().join("decoded.gguf");
        let decoder = decoder.map(TileDecoder::new).transpose()?;
        let by = (session.codec(Encoder::Default)?, decoder.as_ref().map(|decoder| decoder as _));
        dequantize(source, &copy, GgmlType::F16, false, by, &session.progress)?;
        Ok(Self { model: Model::load(&copy, &options)?, decoded, _copy: Some(folder) })
    }
}

/// Bytes of the tensors when those of TCQ4 are F16.
fn copy_bytes(source: &Source) -> u64 {
    let bytes = source.tensors().iter().map(|t| match is_tcq4(source, t) {
        true => 2 * t.dims.iter().product::<u64>(),
        false => t.bytes,
    });
    bytes.sum()
}

/// Says how much a temporary copy takes, and refuses where that does not fit.
fn check_space(session: &Session, folder: &Path, needed: u64) -> Result<()> {
    use crate::util::progress::Progress;
    let parent = folder.parent().unwrap_or(folder);
    session.progress.note(&format!("decoding into a temporary copy of {} in {}", Bytes(needed), parent.display()));
    let Ok(system) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(EvalError::NoSpace { folder: parent.to_path_buf(), needed, free }.into())
}
