//! What an analysis was asked to fail on.

use std::path::PathBuf;

use super::Class;

/// A threshold that a model or its calibration does not meet.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AnalysisError {
    /// Experts that calibration hardly reached.
    #[error("{}: {count} experts have seen too little of the calibration text: {experts}", path.display())]
    StarvedExperts {
        /// The model.
        path: PathBuf,
        /// How many.
        count: usize,
        /// The first of them, by layer: "layer 3: 5, 17".
        experts: String,
    },
}

impl AnalysisError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            AnalysisError::StarvedExperts { .. } => Class::Strict,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            AnalysisError::StarvedExperts { .. } => {
                Some("calibrate on more text, or on text of more kinds: -n, and further -c files".into())
            }
        }
    }
}
