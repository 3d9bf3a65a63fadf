//! Small helpers without knowledge of models: safe outputs, progress reporting, units, hashes, interruption.

pub mod atomic_file;
pub mod hash;
pub mod interrupt;
pub mod process;
pub mod progress;
pub(crate) mod random;
pub mod units;
