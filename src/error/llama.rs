//! What llama.cpp can refuse.

use std::path::PathBuf;

use super::Class;

/// A refusal of llama.cpp, or of this build to call it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LlamaError {
    /// This binary was built without the `llama` feature.
    #[error("{what} needs llama.cpp, which this binary was built without")]
    NotBuiltIn {
        /// The work that needs it.
        what: &'static str,
    },
    /// llama.cpp could not load a model.
    #[error("{}: llama.cpp cannot load this model: {reason}", path.display())]
    Load {
        /// The model file.
        path: PathBuf,
        /// The telling line of llama.cpp's log.
        reason: String,
    },
    /// The binary was compiled for a better CPU than this one.
    #[error("this binary was compiled for a CPU with {}, which this one lacks", missing.join(", "))]
    CpuFeatures {
        /// The missing target features, in rustc's names.
        missing: Vec<&'static str>,
    },
    /// Layers are meant for a GPU that this build cannot use.
    #[error("{layers} layers are meant for a GPU, but this llama.cpp finds none that it can use")]
    NoGpu {
        /// `--ngl`.
        layers: u32,
    },
    /// llama.cpp could not prepare a context.
    #[error("llama.cpp cannot prepare this model to run: {reason}")]
    Context {
        /// The telling line of llama.cpp's log.
        reason: String,
    },
    /// llama.cpp refused a batch.
    #[error("llama.cpp stopped a forward pass with status {status}: {reason}")]
    Decode {
        /// What `llama_decode` returned.
        status: i32,
        /// The telling line of llama.cpp's log.
        reason: String,
    },
    /// A batch of tokens makes no sense.
    #[error("a batch of {count} tokens (1 to {limit} fit){}", unknown.map(|t| format!(", of which {t} is not in the vocabulary")).unwrap_or_default())]
    Tokens {
        /// Tokens in the batch.
        count: usize,
        /// How many fit.
        limit: usize,
        /// The first that the vocabulary does not have.
        unknown: Option<i32>,
    },
    /// A text is too long for one call.
    #[error("a text of {bytes} bytes is too long to tokenise (at most {limit})")]
    TextTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// An observed forward pass was asked of a context made without.
    #[error("this context was prepared without an observer")]
    NotObserving,
    /// An observer panicked inside the graph.
    #[error("the observer of a forward pass panicked: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// A graph has other nodes than the first of its size had.
    #[error(
        "tensor `{tensor}`: it is multiplied at another place of the graph than before, so its input cannot be changed"
    )]
    GraphChanged {
        /// The weight of the multiplication.
        tensor: String,
    },
    /// A graph node has a memory layout that no known model makes.
    #[error("tensor `{tensor}`: {what}")]
    Layout {
        /// The weight of the multiplication.
        tensor: String,
        /// What is strange.
        what: &'static str,
    },
    /// A weight of a loaded model cannot be replaced.
    #[error("weight `{tensor}` cannot be replaced: {what}")]
    Weight {
        /// The weight.
        tensor: String,
        /// Why.
        what: &'static str,
    },
    /// A tensor type cannot be used like this.
    #[error("tensor type {name} {what}")]
    Type {
        /// ggml's name.
        name: String,
        /// What it cannot.
        what: &'static str,
    },
    /// Rows do not fit the blocks of a tensor type.
    #[error("{values} values in rows of {columns} do not fit tensor type {name}, whose blocks have {block}")]
    Shape {
        /// ggml's name.
        name: String,
        /// Values in all.
        values: usize,
        /// Values of a row.
        columns: usize,
        /// Values of a block.
        block: usize,
    },
    /// A buffer has the wrong length.
    #[error("tensor type {name}: expected a length of {expected}, got {got}")]
    Length {
        /// ggml's name.
        name: String,
        /// The right length.
        expected: usize,
        /// The one found.
        got: usize,
    },
    /// A value that no encoder may see.
    #[error("tensor type {name}: {what} {at} is {value}")]
    Value {
        /// ggml's name.
        name: String,
        /// "weight" or "importance".
        what: &'static str,
        /// Where, counted from the first.
        at: usize,
        /// The value.
        value: f32,
    },
}

impl LlamaError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            LlamaError::NotBuiltIn { .. } | LlamaError::NoGpu { .. } => Class::Usage,
            LlamaError::Load { .. }
            | LlamaError::TextTooLong { .. }
            | LlamaError::Type { .. }
            | LlamaError::Shape { .. }
            | LlamaError::Value { .. } => Class::Refused,
            LlamaError::CpuFeatures { .. }
            | LlamaError::Context { .. }
            | LlamaError::Decode { .. }
            | LlamaError::Tokens { .. }
            | LlamaError::NotObserving
            | LlamaError::Panicked { .. }
            | LlamaError::GraphChanged { .. }
            | LlamaError::Layout { .. }
            | LlamaError::Weight { .. }
            | LlamaError::Length { .. } => Class::Failed,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            LlamaError::NotBuiltIn { .. } => "build with the default features (cmake and libclang are needed)",
            LlamaError::CpuFeatures { .. } => {
                "build it on this machine, or portably with RUSTFLAGS=\"\" (see the README)"
            }
            LlamaError::NoGpu { .. } => "build with --features cuda, or leave --ngl out",
            LlamaError::Context { .. } => "a smaller --ctx needs less memory",
            LlamaError::TextTooLong { .. } => "split the text into several files",
            LlamaError::Value { .. } => "the source model is damaged: fetch or convert it again",
            _ => return None,
        };
        Some(hint.into())
    }
}
