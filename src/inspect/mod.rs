//! What is in a GGUF file, and how two of them differ; reads headers and compares bytes, decodes nothing.

mod diff;
mod show;
mod summary;

pub use diff::{Change, Diff, diff};
pub use summary::{Summary, TensorRow, TypeShare, summarize};
