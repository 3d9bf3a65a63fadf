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
        /// The last lines of llama.cpp's log.
        reason: String,
    },
}

impl LlamaError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            LlamaError::NotBuiltIn { .. } => Class::Usage,
            LlamaError::Load { .. } => Class::Refused,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            LlamaError::NotBuiltIn { .. } => {
                Some("build with the default features (cmake and libclang are needed)".into())
            }
            LlamaError::Load { .. } => None,
        }
    }
}
