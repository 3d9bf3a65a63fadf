//! A model as llama.cpp loads it, and its tokeniser. Cheap facts only: tensors are read through `gguf`.

use std::path::{Path, PathBuf};

use super::ModelOptions;
use super::ffi;
use crate::Result;
use crate::error::LlamaError;

/// The longest text, in bytes, that llama.cpp tokenises in one call (its lengths are 32-bit, a token may need several).
const MAX_TEXT: usize = 1 << 29;

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    pub(super) raw: ffi::RawModel,
    pub(super) gpu_layers: u32,
    writable: bool,
    path: PathBuf,
}

impl Model {
    /// Loads a GGUF model (its first shard, if it has several).
    ///
    /// # Errors
    /// [`LlamaError::Load`] with llama.cpp's reason; [`LlamaError::NoGpu`] if layers are meant for a GPU that this build cannot use.
    pub fn load(path: &Path, options: &ModelOptions) -> Result<Self> {
        std::fs::metadata(path).map_err(crate::Error::io(path, "open"))?;
        let raw = ffi::RawModel::load(path, options)?;
        Ok(Self { raw, gpu_layers: options.gpu_layers, writable: options.writable, path: path.to_path_buf() })
    }

    /// Replaces bytes of a weight, in the type that it has in the file, from byte `offset` of its data on. Gives false, and changes nothing, if no
    /// forward pass reads a weight of this name where it was loaded.
    ///
    /// # Errors
    /// [`LlamaError::Weight`] for a model that is not [`ModelOptions::writable`], and for bytes beyond the end of the weight; what keeps the model
    /// from running, which it does once for a single token to learn where its weights lie.
    pub fn replace(&mut self, weight: &str, offset: usize, bytes: &[u8]) -> Result<bool> {
        if !self.writable {
            let tensor = weight.to_owned();
            return Err(LlamaError::Weight { tensor, what: "the model was not loaded for that" }.into());
        }
        self.raw.replace(weight, offset, bytes)
    }

    /// The file it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Turns text into tokens. `add_special` adds what the vocabulary puts around a text (BOS), `parse_special` lets the text spell
    /// control tokens.
    ///
    /// # Errors
    /// [`LlamaError::TextTooLong`] beyond half a gibibyte.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>> {
        if text.len() > MAX_TEXT {
            return Err(LlamaError::TextTooLong { bytes: text.len(), limit: MAX_TEXT }.into());
        }
        let tokens = self.raw.inner().vocab().tokenize(text.as_bytes(), add_special, parse_special);
        Ok(tokens.into_iter().map(|token| token.0).collect())
    }

    /// Whether the vocabulary begins every text with BOS.
    pub fn adds_bos(&self) -> bool {
        self.raw.inner().vocab().should_add_bos()
    }

    /// Whether the vocabulary ends every text with EOS.
    pub fn adds_eos(&self) -> bool {
        self.raw.inner().vocab().should_add_eos()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> i32 {
        self.raw.inner().vocab().bos().0
    }

    /// Tokens in the vocabulary, that is logits per position.
    pub fn vocab_size(&self) -> usize {
        usize::try_from(self.raw.inner().vocab().n_tokens()).unwrap_or(0)
    }

    /// The context length that the model was trained with.
    pub fn train_context(&self) -> u32 {
        self.raw.inner().n_ctx_train()
    }
}
