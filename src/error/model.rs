//! What can be wrong with a model, a statistics file or a permutation file although its bytes are sound.

use std::path::PathBuf;

use super::Class;

/// An input that is well formed but not what the work needs.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A weight is NaN or infinite.
    #[error("{}: tensor `{tensor}` has {value} at row {row}, column {column}", path.display())]
    NotFinite {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row of the value.
        row: u64,
        /// The column of the value.
        column: u64,
        /// The value.
        value: f32,
    },
    /// An output exists already.
    #[error("{}: the file exists already", path.display())]
    OutputExists {
        /// The file.
        path: PathBuf,
    },
    /// An output is one of the inputs.
    #[error("{}: this output is the same file as the input {}", path.display(), input.display())]
    OutputIsInput {
        /// The output.
        path: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// Another run holds the lock of an output.
    #[error("{}: another run is writing this file", path.display())]
    OutputBusy {
        /// The file.
        path: PathBuf,
    },
}

impl ModelError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        Class::Refused
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            ModelError::NotFinite { .. } => Some("the source model is damaged: fetch or convert it again".into()),
            ModelError::OutputExists { .. } => Some("choose another name, or pass --force to replace it".into()),
            ModelError::OutputIsInput { .. } => Some("choose another output name".into()),
            ModelError::OutputBusy { .. } => Some("wait until it is done, or choose another output name".into()),
        }
    }
}
