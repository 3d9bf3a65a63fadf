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
    /// There is no text to calibrate with.
    #[error("{}: no text to calibrate with", sources.join(", "))]
    CalibrationEmpty {
        /// The sources.
        sources: Vec<String>,
    },
    /// A calibration file is not what its name says.
    #[error("{}{}: {what}", path.display(), line.map(|l| format!(":{l}")).unwrap_or_default())]
    CalibrationFormat {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: Option<usize>,
        /// What is wrong.
        what: String,
    },
    /// A text has too few tokens.
    #[error("the text has {tokens} tokens, at least {needed} are needed")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens that the work needs: one chunk to calibrate, two to measure perplexity.
        needed: usize,
    },
    /// A forward pass gave NaN or infinity.
    #[error("the input of tensor `{tensor}` is not finite in channel {channel}")]
    ActivationNotFinite {
        /// The weight that multiplies it.
        tensor: String,
        /// The first such channel.
        channel: usize,
    },
    /// A model computed NaN or infinity for a token's logits.
    #[error("{}: the model computes logits that are not finite on chunk {chunk} of the text", path.display())]
    LogitsNotFinite {
        /// The model file.
        path: PathBuf,
        /// The chunk, counted from 0.
        chunk: usize,
    },
    /// The input of a weight changed its shape between two graphs.
    #[error("tensor `{tensor}`: expected {} inputs of {} channels, got {} of {}", expected.0, expected.1, got.0, got.1)]
    CalibrationShape {
        /// The weight.
        tensor: String,
        /// Matrices and channels before.
        expected: (usize, usize),
        /// Matrices and channels now.
        got: (usize, usize),
    },
    /// Two statistics cannot be added up.
    #[error("these statistics differ in their {what}: {first} and {second}")]
    StatisticsDiffer {
        /// What differs.
        what: String,
        /// It in the first.
        first: String,
        /// It in the second.
        second: String,
    },
    /// A statistics file makes no sense.
    #[error("{}: not a usable statistics file: {what}", path.display())]
    Statistics {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Statistics were measured on another model.
    #[error("{}: these statistics are of another model: {what}", path.display())]
    StatisticsOfAnotherModel {
        /// The model file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// A checkpoint cannot be continued.
    #[error("{}: this checkpoint cannot be continued: {what}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong or different.
        what: String,
    },
    /// A permutation file makes no sense.
    #[error("{}: not a permutation file: {what}", path.display())]
    Perms {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// An entry of a permutation file does not fit the model.
    #[error("{}: the permutation of `{tensor}` {what}", path.display())]
    PermsTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
}

impl ModelError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            ModelError::ActivationNotFinite { .. }
            | ModelError::LogitsNotFinite { .. }
            | ModelError::CalibrationShape { .. } => Class::Failed,
            _ => Class::Refused,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        use ModelError as E;
        let text = match self {
            E::NotFinite { .. } => "the source model is damaged: fetch or convert it again",
            E::OutputExists { .. } => "choose another name, or pass --force to replace it",
            E::OutputIsInput { .. } => "choose another output name",
            E::OutputBusy { .. } => "wait until it is done, or choose another output name",
            E::CalibrationEmpty { .. } => "give a text of a few hundred kilobytes, like those that the model will see",
            E::TextTooShort { .. } => "give a longer text, or shorter chunks with --ctx",
            E::ActivationNotFinite { .. } | E::LogitsNotFinite { .. } => {
                "the model computes no usable numbers: `tcq4 verify` names weights that are not finite"
            }
            E::CalibrationFormat { .. } | E::CalibrationShape { .. } => return None,
            E::StatisticsDiffer { .. } => "add up only statistics of one model, measured with one --ctx",
            E::Statistics { .. } => "make it again with `tcq4 calibrate --stats`, or with llama-imatrix",
            E::StatisticsOfAnotherModel { .. } => {
                "calibrate this very model: statistics of another quantisation or fine-tune mislead"
            }
            E::Checkpoint { .. } => "run without --resume to begin anew",
            E::Perms { .. } => {
                "expected {\"version\": 1, \"permutations\": {\"blk.0.attn_q.weight\": [..], ..}}, as `tcq4 calibrate -o` writes it"
            }
            E::PermsTensor { .. } => "make the permutations again from this model",
        };
        Some(text.into())
    }
}
