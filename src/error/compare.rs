//! What can go wrong when models are compared.

use std::path::PathBuf;

use super::Class;

/// Models that cannot be compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// Two models cut a text into different tokens.
    #[error(
        "{}: cuts {dataset} into {found} tokens, expected the {expected} tokens of {}; they differ from token {at} on",
        model.display(),
        baseline.display()
    )]
    Tokens {
        /// The model.
        model: PathBuf,
        /// The first model.
        baseline: PathBuf,
        /// The text.
        dataset: String,
        /// Tokens of the first model.
        expected: usize,
        /// Tokens of this one.
        found: usize,
        /// The first token that differs.
        at: usize,
    },
    /// Two models have vocabularies of different size.
    #[error("{}: has a vocabulary of {found} tokens, expected {expected} as in {}", model.display(), baseline.display())]
    Vocabulary {
        /// The model.
        model: PathBuf,
        /// The first model.
        baseline: PathBuf,
        /// Tokens in the first vocabulary.
        expected: usize,
        /// Tokens in this one.
        found: usize,
    },
    /// Two models ran different numbers of chunks.
    #[error("{}: ran {found} chunks of {dataset}, expected {expected} as {}", model.display(), baseline.display())]
    Chunks {
        /// The model.
        model: PathBuf,
        /// The first model.
        baseline: PathBuf,
        /// The text.
        dataset: String,
        /// Chunks of the first model.
        expected: usize,
        /// Chunks of this one.
        found: usize,
    },
}

impl CompareError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        Class::Refused
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            CompareError::Tokens { .. } | CompareError::Vocabulary { .. } => {
                "perplexities over different tokens say nothing about each other: compare models of one tokeniser"
            }
            CompareError::Chunks { .. } => "run all models with the same --ctx and --chunks",
        };
        Some(text.into())
    }
}
