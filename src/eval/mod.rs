//! Measures what a model is worth. Text in, numbers out; what they mean for a user is said elsewhere.

pub mod perplexity;

pub use perplexity::{Perplexity, PerplexityOptions, perplexity};
