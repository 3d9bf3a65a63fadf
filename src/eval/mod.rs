//! Measures what a model is worth: perplexity, and the divergence from a reference. Text in, numbers out; what they mean for a user is said elsewhere.

mod base_file;
pub mod compare;
mod divergence;
mod measure;
mod perplexity;
mod probe;
mod score;
mod softmax;
mod statistics;
mod windows;

pub use base_file::{LogitsReader, LogitsShape, LogitsWriter};
pub use compare::{Analysis, CompareSettings, Comparison, Contender, DatasetResult, Rule, compare};
pub use divergence::Divergence;
pub use measure::{
    LogitsOutput, Measured, Options, Reference, check_same_tokens, measure, measure_alone, measure_and_save,
    saved_shape, windows_of_file,
};
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
pub use probe::probe;
pub use score::{Score, ScoreDivergence};
pub use statistics::{Estimate, Percentile};
pub use windows::{Cut, Windows};
