//! Mathematics without knowledge of files or models.

pub mod hadamard;
pub mod permutation;
pub mod stats;

pub use permutation::Permutation;
