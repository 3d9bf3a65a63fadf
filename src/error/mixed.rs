//! What can go wrong when bits are given to the tensors that need them most.

use std::path::PathBuf;

use super::Class;

/// A budget that cannot be met, or a file of sensitivities that is not what it should be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MixedError {
    /// The model cannot be that small.
    #[error("{}: {wanted} bits a weight are too few: with every linear layer in its smallest type it takes {least:.4}", path.display())]
    Budget {
        /// The model file.
        path: PathBuf,
        /// Bits a weight that were asked for.
        wanted: f64,
        /// The least possible.
        least: f64,
    },
    /// A file is no file of sensitivities, or its values are impossible.
    #[error("{}: not a file of sensitivities: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Sensitivities are of another model.
    #[error("{}: these sensitivities are of another model: its fingerprint is {found}, that of {} {expected}", path.display(), model.display())]
    AnotherModel {
        /// The file.
        path: PathBuf,
        /// The model file.
        model: PathBuf,
        /// The model's fingerprint.
        expected: String,
        /// The fingerprint in the file.
        found: String,
    },
}

impl MixedError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        Class::Refused
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            MixedError::Budget { least, .. } => {
                // Rounded up: what is shown must be enough.
                let enough = (least * 1e4).ceil() / 1e4;
                return Some(format!(
                    "pass --target-bpw {enough} or more, or a smaller --output-type or --embedding-type"
                ));
            }
            MixedError::File { .. } | MixedError::AnotherModel { .. } => {
                "give another file with --sensitivities, or remove this one: what is not there is measured"
            }
        };
        Some(text.into())
    }
}
