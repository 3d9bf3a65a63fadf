//! What can go wrong when numbers about a model are exported.

use std::path::PathBuf;

use super::Class;

/// Numbers that are not there, or a file of them that is not what it should be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A model has no such weight.
    #[error("{}: has no weight matrix `{tensor}`", path.display())]
    NoTensor {
        /// The model file.
        path: PathBuf,
        /// The name that was asked for.
        tensor: String,
    },
    /// A tensor has no such row.
    #[error("{}: `{tensor}` has {rows} rows, there is no row {row}", path.display())]
    NoRow {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row that was asked for, the first being 0.
        row: u64,
        /// How many rows there are.
        rows: u64,
    },
    /// Statistics lack something about a tensor.
    #[error("{}: has no {what} of `{tensor}`", path.display())]
    NotMeasured {
        /// The statistics file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is missing.
        what: &'static str,
    },
    /// A pattern names nothing.
    #[error("{}: no tensor matches `{pattern}`", path.display())]
    NoMatch {
        /// The file.
        path: PathBuf,
        /// The pattern.
        pattern: String,
    },
    /// A file of ranges is not what it should be.
    #[error("{}: not a usable file of activation ranges: {what}", path.display())]
    Ranges {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl ExportError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        Class::Refused
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            ExportError::NoTensor { .. } => "`tcq4 inspect --all` lists the tensors of a file",
            ExportError::NoRow { .. } => "rows are counted from 0, those of all experts one after the other",
            ExportError::NotMeasured { .. } => {
                "files of llama-imatrix and of older versions lack it: measure again with `tcq4 calibrate --stats`"
            }
            ExportError::NoMatch { .. } => "the pattern is a regular expression over tensor names",
            ExportError::Ranges { .. } => {
                "expected activation_ranges.json (an object with \"layer_ranges\") or ranges_minmax.json ({name: {\"min\", \"max\"}})"
            }
        };
        Some(text.into())
    }
}
