//! Measures what a model is worth. Text in, numbers out; what they mean for a user is said elsewhere.

pub mod compare;
pub mod perplexity;

pub use compare::{Analysis, CompareSettings, Comparison, Contender, DatasetResult, Rule, Score, compare};
pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
