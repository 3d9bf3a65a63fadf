//! What can be wrong with an evaluation: models that cannot be compared, files of log-probabilities, simulations without an object.

use std::path::PathBuf;

use super::Class;

/// A refusal to measure.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Two models have vocabularies of different size.
    #[error("{}: a vocabulary of {found} tokens, the reference {} has {expected}", model.display(), reference.display())]
    Vocabulary {
        /// The model.
        model: PathBuf,
        /// The reference: a model or a file of log-probabilities.
        reference: PathBuf,
        /// Tokens of the reference.
        expected: usize,
        /// Tokens of the model.
        found: usize,
    },
    /// Two models cut a text into different tokens.
    #[error("{}: token {at} of the text is not that of the reference {}", model.display(), reference.display())]
    Tokens {
        /// The model.
        model: PathBuf,
        /// The reference.
        reference: PathBuf,
        /// The first token that differs, counted from 0.
        at: usize,
    },
    /// A file of log-probabilities begins with something else.
    #[error("{}: not a file of log-probabilities (it does not begin with `_logits_`)", path.display())]
    LogitsMagic {
        /// The file.
        path: PathBuf,
    },
    /// A number in the header of a file of log-probabilities makes no sense.
    #[error("{}: {field} is {found}, expected {expected}", path.display())]
    LogitsHeader {
        /// The file.
        path: PathBuf,
        /// Which number.
        field: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        found: i64,
    },
    /// A file of log-probabilities is shorter or longer than its header says.
    #[error("{}: the header asks for {expected} bytes, the file has {found}", path.display())]
    LogitsLength {
        /// The file.
        path: PathBuf,
        /// Bytes by the header.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The log-probabilities of a chunk are not finite or not below 0.
    #[error("{}: chunk {chunk}: a row begins at log-probability {least} with steps of {scale}", path.display())]
    LogitsRow {
        /// The file.
        path: PathBuf,
        /// The chunk, counted from 0.
        chunk: usize,
        /// The smallest log-probability of the row.
        least: f32,
        /// The step.
        scale: f32,
    },
    /// A simulation of run-time activations has no multiplication to act on.
    #[error("{}: no TCQ4 tensors, so there are no activations that a runtime would round", path.display())]
    NothingToSimulate {
        /// The model.
        path: PathBuf,
    },
    /// A temporary copy does not fit the disk.
    #[error("{}: a decoded copy of the model needs {} MiB there, {} MiB are free", folder.display(), needed.div_ceil(1 << 20), free >> 20)]
    NoSpace {
        /// Where temporary files go.
        folder: PathBuf,
        /// Bytes of the copy.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}

impl EvalError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            EvalError::NoSpace { .. } => Class::Failed,
            _ => Class::Refused,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            EvalError::Vocabulary { .. } | EvalError::Tokens { .. } => {
                "KL divergence compares two files of one model: the original and its quantisation"
            }
            EvalError::LogitsMagic { .. } | EvalError::LogitsHeader { .. } | EvalError::LogitsRow { .. } => {
                "make it with `tcq4 eval MODEL -f TEXT --logits-out FILE`, or with llama-perplexity --save-all-logits"
            }
            EvalError::LogitsLength { .. } => "the program that wrote it did not finish: write it again",
            EvalError::NothingToSimulate { .. } => {
                "quantise the model first, or take --simulate-all to round what enters the tensors that would become TCQ4"
            }
            EvalError::NoSpace { .. } => "free some space, or let TMPDIR name a folder on another disk",
        };
        Some(hint.into())
    }
}
