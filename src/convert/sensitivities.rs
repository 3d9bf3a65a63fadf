//! Keeps in a JSON file what the choices of mixed precision are made by, because measuring it takes long. A file is of one model; each part of it
//! names the settings that it was measured with.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::calib::store::fingerprint;
use crate::error::{Error, MixedError, Result};
use crate::gguf::Source;
use crate::quant::{Candidates, GroupLoss};
use crate::util::atomic_file;

const VERSION: u32 = 1;
/// No file of sensitivities is larger: what is larger is something else, a model for instance.
const LARGEST: u64 = 1 << 28;

/// Losses, and what they depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part<T> {
    /// Text, method and preparation, in a line.
    pub settings: String,
    /// One entry an input group or tensor, in the order of the model.
    pub losses: Vec<T>,
}

/// What is known about a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivities {
    version: u32,
    /// [`fingerprint`] of the model.
    model: String,
    /// What rounded inputs cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Part<GroupLoss>>,
    /// What smaller types cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Part<Candidates>>,
}

impl Sensitivities {
    /// Knows nothing about `model` yet.
    pub fn new(model: &Source) -> Self {
        Self { version: VERSION, model: fingerprint(model), inputs: None, tensors: None }
    }

    /// Reads a file about `model`; one that does not exist knows nothing.
    ///
    /// # Errors
    /// [`MixedError::File`], [`MixedError::AnotherModel`], and what the operating system refuses.
    pub fn load(path: &Path, model: &Source) -> Result<Self> {
        let fail = |what: String| MixedError::File { path: path.to_path_buf(), what };
        let bytes = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::new(model)),
            found => found.map_err(Error::io(path, "read"))?.len(),
        };
        if bytes > LARGEST {
            return Err(fail(format!("it has {bytes} bytes, far too many")).into());
        }
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let read: Self = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
        if read.version != VERSION {
            return Err(fail(format!("its version is {}, this program knows version {VERSION}", read.version)).into());
        }
        let expected = fingerprint(model);
        if read.model != expected {
            let (path, model) = (path.to_path_buf(), model.path().to_path_buf());
            return Err(MixedError::AnotherModel { path, model, expected, found: read.model }.into());
        }
        read.check(model).map_err(fail)?;
        Ok(read)
    }

    /// Writes the file, over what it was read from.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path, inputs: &[&Path]) -> Result<()> {
        let mut text = serde_json::to_vec(self).map_err(|e| Error::io(path, "write")(e.into()))?;
        text.push(b'\n');
        atomic_file::write(path, true, inputs, &text)
    }

    /// What is impossible for the model, if anything.
    fn check(&self, model: &Source) -> Result<(), String> {
        let loss = |name: &str, values: &[f64]| match values.iter().find(|value| !(value.is_finite() && **value >= 0.0))
        {
            Some(value) => Err(format!("`{name}` has the loss {value}")),
            None => Ok(()),
        };
        let mut seen = BTreeSet::new();
        for group in self.inputs.iter().flat_map(|part| &part.losses) {
            loss(&group.group, &[group.error, group.error_int8, group.estimate, group.kld.unwrap_or(0.0)])?;
            if group.multiply_adds > 1 << 50 {
                return Err(format!("`{}` has {} multiply-adds", group.group, group.multiply_adds));
            }
            for name in &group.tensors {
                if model.tensor(name).is_none() || !seen.insert(name) {
                    return Err(format!("`{name}` is not in the model, or in two groups"));
                }
            }
        }
        seen.clear();
        for of in self.tensors.iter().flat_map(|part| &part.losses) {
            let tensor = model.tensor(&of.tensor).filter(|_| seen.insert(&of.tensor));
            let tensor = tensor.ok_or_else(|| format!("`{}` is not in the model, or there twice", of.tensor))?;
            loss(&of.tensor, &[of.sensitivity])?;
            if of.candidates.is_empty() || of.weights != tensor.elements() {
                return Err(format!("`{}` has no candidates, or another size than in the model", of.tensor));
            }
            for candidate in &of.candidates {
                loss(&of.tensor, &[candidate.error, candidate.loss])?;
                let ty = candidate.ty.parse::<crate::gguf::GgmlType>().map_err(|e| e.to_string())?;
                let bytes = ty.row_bytes(tensor.columns()).and_then(|row| row.checked_mul(tensor.rows()));
                if bytes != Some(candidate.bytes) {
                    return Err(format!("`{}` does not take {} bytes as {ty}", of.tensor, candidate.bytes));
                }
            }
        }
        Ok(())
    }
}
