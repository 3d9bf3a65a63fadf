//! Reads and writes GGUF files: a strict reader over mapped memory, and a writer that plans every byte before it writes any.
//! It knows tensors as named bytes with a shape and a type, not what they mean to a model.
//!
//! Three rules make bad files harmless: nothing is allocated for what a file claims before the claim is checked against the bytes that are
//! there; all arithmetic on numbers of a file is checked; every limit has a name ([`limits`]).

mod cursor;
mod header;
pub mod limits;
mod merge;
mod metadata;
mod mmap;
mod names;
mod place;
mod plan;
mod shards;
mod source;
mod tensor;
mod types;
mod value;
mod writer;

pub use metadata::Metadata;
pub use plan::{Plan, Sharding};
pub use shards::ShardName;
pub use source::Source;
pub use tensor::{TensorInfo, TensorSpec};
pub use types::{Dialect, GgmlType, TypeLayout, UnknownTypeName};
pub use value::{Array, Value, ValueType};
pub use writer::Writer;
