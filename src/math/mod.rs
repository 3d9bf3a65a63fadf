//! Mathematics without knowledge of files or models.

pub mod cholesky;
pub mod dots;
pub mod exact_sum;
pub mod hadamard;
pub mod permutation;
pub mod products;
pub mod stats;

pub use permutation::Permutation;
