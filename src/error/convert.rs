//! What can go wrong between a sound model and a converted one.

use std::path::PathBuf;

use super::Class;

/// A model that cannot be converted as asked, or a converted file that is not what it should be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A tensor would have to be decoded first, which costs quality.
    #[error("{}: tensor `{tensor}` is {ty} already, expected F16, BF16 or F32", path.display())]
    AlreadyQuantized {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: String,
    },
    /// A source is the result of a conversion.
    #[error("{}: tensor `{tensor}` is TCQ4 already", path.display())]
    AlreadyTcq4 {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A weight is too large for the format's half-precision scales.
    #[error(
        "{}: tensor `{tensor}` has rotated weights up to {magnitude:e} in row {row} from column {column} on, beyond what a half-precision scale can hold",
        path.display()
    )]
    TooLarge {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The row.
        row: u64,
        /// The first column of the chunk.
        column: u64,
        /// The largest rotated magnitude.
        magnitude: f32,
    },
    /// A weight is beyond the range of the type that was asked for.
    #[error("{}: tensor `{tensor}` has weights beyond the range of {ty}", path.display())]
    OutOfRange {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type.
        ty: String,
    },
    /// A permutation that a file carries is not one of its tensors' columns.
    #[error("{}: permutation of `{tensor}`: {problem}", path.display())]
    Permutation {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A converted file is damaged.
    #[error("{}: `{tensor}`: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The tensor or key.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// Two files that should hold the same model do not.
    #[error("{}: tensor `{tensor}`: expected {expected} as in {}, found {found}", path.display(), other.display())]
    AnotherModel {
        /// The file.
        path: PathBuf,
        /// The file it should fit.
        other: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the other file has.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// There is nothing to decode.
    #[error("{}: the file has no TCQ4 tensors", path.display())]
    NoTcq4 {
        /// The file.
        path: PathBuf,
    },
    /// Something of an interrupted conversion lies where a new one would keep what it has done.
    #[error("{}: this is left of a conversion that was interrupted", path.display())]
    LeftOver {
        /// The folder.
        path: PathBuf,
    },
    /// What an interrupted conversion has kept cannot be continued.
    #[error("{}: the checkpoint cannot be continued: {what}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong or different.
        what: String,
    },
    /// The source cannot be given up shard by shard.
    #[error("{}: cannot be deleted on the way: {what}", path.display())]
    NotConsumable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// What an interrupted run has made of shards that it deleted does not fit this run.
    #[error("{}: cannot go on: {what}", path.display())]
    Consumed {
        /// The folder.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// `--strict` met a substitution.
    #[error("{}: {count} tensors cannot take the type meant for them, the first `{tensor}`: {problem}", path.display())]
    Substitution {
        /// The model file.
        path: PathBuf,
        /// How many tensors.
        count: usize,
        /// The first of them.
        tensor: String,
        /// What does not fit.
        problem: String,
    },
}

impl ConvertError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            ConvertError::Substitution { .. } => Class::Strict,
            _ => Class::Refused,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            ConvertError::AlreadyQuantized { .. } => {
                "start from the F16, BF16 or F32 model, or pass --allow-requantize"
            }
            ConvertError::AlreadyTcq4 { .. } => "start from its source, or turn it back with `tcq4 dequantize`",
            ConvertError::TooLarge { .. } => "keep this tensor in another type: --tensor-type 'NAME=f16'",
            ConvertError::OutOfRange { .. } => "choose a type of larger range, bf16 or f32",
            ConvertError::Permutation { .. } | ConvertError::Damaged { .. } => {
                "the file was changed after it was written, or written by a faulty program: convert again"
            }
            ConvertError::AnotherModel { .. } => "the two files do not hold the same model",
            ConvertError::NoTcq4 { .. } => "it can be used as it is",
            ConvertError::LeftOver { .. } => "--resume goes on with it; --force begins anew and replaces it",
            ConvertError::Checkpoint { .. } => "pass --force instead of --resume to begin anew",
            ConvertError::NotConsumable { .. } => {
                "leave out --delete-source-shards, or name a model in shards that are files of their own"
            }
            ConvertError::Consumed { .. } => {
                "go on with the options of the first run, or remove this folder if all shards of the source are still there"
            }
            ConvertError::Substitution { .. } => {
                "leave --strict out to accept this, or choose with --tensor-type; --dry-run shows the plan"
            }
        };
        Some(text.into())
    }
}
