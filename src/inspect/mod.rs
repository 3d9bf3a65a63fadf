//! What is in a GGUF file or in statistics, and how two files differ; changes and writes nothing.

mod channels;
mod diff;
mod ranges;
mod show;
mod summary;

pub use channels::{ChannelRow, DEFINITIONS, RowData, RowMetadata, RowSource, channels};
pub use diff::{Change, Diff, diff};
pub use ranges::{Matched, Names, Range, Ranges, Scale, ScaleFormat};
pub use summary::{Summary, TensorRow, TypeShare, summarize};
