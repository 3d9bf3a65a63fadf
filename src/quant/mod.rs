//! Everything that is decided before a weight is encoded: channel scales, channel orders, and how both are folded into the model.
//!
//! The algorithms are pure functions of numbers; only [`prepare`] knows models and statistics.

pub mod activation;
pub mod fold;
pub mod permute;
pub mod scale;
pub mod transform;

pub use activation::Activations;
pub use permute::{Channels, Order};
pub use transform::Transform;
