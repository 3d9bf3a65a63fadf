//! What can be wrong with second moments and with the files that keep them.

use std::path::PathBuf;

use super::Class;

/// Second moments cannot be measured, read or added up.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MomentsError {
    /// The inputs of a weight are not finite, or too large for sums.
    #[error(
        "the input of tensor `{tensor}` is not finite, or grew far beyond that of the first chunk: its second moment cannot be summed"
    )]
    OutOfRange {
        /// The weight.
        tensor: String,
    },
    /// A file is of another kind.
    #[error("{}: expected second moments (general.type `{expected}`), got {}", path.display(), found.as_ref().map_or("no general.type".into(), |found| format!("`{found}`")))]
    Kind {
        /// The file.
        path: PathBuf,
        /// The kind of file.
        expected: &'static str,
        /// What it says.
        found: Option<String>,
    },
    /// A file is of another version.
    #[error("{}: expected second moments of version {expected}, got {}", path.display(), found.map_or("none".into(), |found| found.to_string()))]
    Version {
        /// The file.
        path: PathBuf,
        /// The version that is read.
        expected: u64,
        /// The version of the file.
        found: Option<u64>,
    },
    /// A key of a file lacks or makes no sense.
    #[error("{}: `{key}`: expected {expected}, got {found}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A tensor of a file lacks or makes no sense.
    #[error("{}: tensor `{tensor}`: expected {expected}, got {found}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What belongs there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Second moments are of another model, text or setting.
    #[error("{}: these second moments are of another {what}: expected {expected}, got {found}", path.display())]
    Another {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What was needed.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A chunk of text is in two files.
    #[error("{}: chunk {chunk} of the text is in {} too", path.display(), other.display())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The other file.
        other: PathBuf,
        /// The chunk.
        chunk: i32,
    },
}

impl MomentsError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            Self::OutOfRange { .. } => Class::Failed,
            _ => Class::Refused,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::OutOfRange { .. } => "`tcq4 verify` names weights that are not finite",
            Self::Another { .. } => "measure them on this model, text and setting, with --force to replace the file",
            Self::Overlap { .. } => "add up each part of the text once",
            _ => "make it again with `tcq4 calibrate --second-moments`",
        };
        Some(text.into())
    }
}
