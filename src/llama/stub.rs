//! The shape of this floor without llama.cpp: everything that needs it refuses. Values of [`Model`] and [`Context`] cannot exist.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::path::Path;

use super::{ContextOptions, Logits, ModelOptions, Observer, Watch};
use crate::Result;
use crate::error::LlamaError;

fn refuse<T>(what: &'static str) -> Result<T> {
    Err(LlamaError::NotBuiltIn { what }.into())
}

/// A loaded model; never, in this build.
#[derive(Debug)]
pub struct Model(Infallible);

#[expect(missing_docs, reason = "the documented ones are those with the feature")]
impl Model {
    pub fn load(_path: &Path, _options: &ModelOptions) -> Result<Self> {
        refuse("running a model")
    }

    pub fn path(&self) -> &Path {
        match self.0 {}
    }

    pub fn replace(&mut self, _weight: &str, _offset: usize, _bytes: &[u8]) -> Result<bool> {
        match self.0 {}
    }

    pub fn tokenize(&self, _text: &str, _add_special: bool, _parse_special: bool) -> Result<Vec<i32>> {
        match self.0 {}
    }

    pub fn adds_bos(&self) -> bool {
        match self.0 {}
    }

    pub fn adds_eos(&self) -> bool {
        match self.0 {}
    }

    pub fn bos(&self) -> i32 {
        match self.0 {}
    }

    pub fn vocab_size(&self) -> usize {
        match self.0 {}
    }

    pub fn train_context(&self) -> u32 {
        match self.0 {}
    }
}

/// A running model; never, in this build.
#[derive(Debug)]
pub struct Context<'m>(Infallible, PhantomData<&'m Model>);

#[expect(missing_docs, reason = "the documented ones are those with the feature")]
impl<'m> Context<'m> {
    pub fn new(model: &'m Model, _options: &ContextOptions) -> Result<Self> {
        match model.0 {}
    }

    pub fn decode(&mut self, _tokens: &[i32], _logits: Logits) -> Result<()> {
        match self.0 {}
    }

    pub fn decode_observed(&mut self, _tokens: &[i32], _observer: &mut dyn Observer) -> Result<()> {
        match self.0 {}
    }

    pub fn decode_watched(&mut self, _tokens: &[i32], _logits: Logits, _watch: Watch<'_>) -> Result<()> {
        match self.0 {}
    }

    pub fn logits(&mut self) -> &[f32] {
        match self.0 {}
    }

    pub fn clear(&mut self) {
        match self.0 {}
    }
}

/// Refuses: ggml's types need llama.cpp.
pub fn quantize_rows(
    _ty: u32,
    _src: &[f32],
    _columns: usize,
    _importance: Option<&[f32]>,
    _dst: &mut [u8],
) -> Result<()> {
    refuse("writing this tensor type")
}

/// Refuses: ggml's types need llama.cpp.
pub fn dequantize_rows(_ty: u32, _src: &[u8], _columns: usize, _dst: &mut [f32]) -> Result<()> {
    refuse("reading this tensor type")
}

/// No: there is no llama.cpp.
pub fn knows_tcq4() -> bool {
    false
}

/// Says that there is no llama.cpp.
pub fn simd_summary() -> String {
    "llama.cpp: not built in".into()
}

/// Says that there is no llama.cpp.
pub fn about() -> String {
    "llama.cpp: not built in".into()
}
