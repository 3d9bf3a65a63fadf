//! Small helpers without knowledge of models: safe outputs, progress reporting, units, hashes, shares of work, interruption.

pub mod atomic_file;
pub mod hash;
pub mod holes;
pub mod interrupt;
pub mod process;
pub mod progress;
pub(crate) mod random;
pub mod shard;
pub mod units;
