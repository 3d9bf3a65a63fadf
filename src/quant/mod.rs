//! Everything that is decided before a weight is encoded: channel scales, channel orders, and how both are folded into the model.
//!
//! The algorithms are pure functions of numbers; only [`prepare()`] and what it is made of know models and statistics.

pub mod activation;
pub mod evidence;
pub mod fold;
mod generic;
pub mod input;
pub mod objective;
pub mod outcome;
pub mod permute;
pub mod prepare;
pub mod recipe;
pub mod rounding;
pub mod salience;
pub mod scale;
pub mod settings;
mod simulate;
pub mod step;
mod study;
pub mod transform;

pub use activation::Activations;
pub use evidence::ReadRows;
pub use input::InputRounding;
pub use outcome::{Applied, Grounds, GroupOutcome, Measured, ScaleOutcome};
pub use permute::{Channels, Order};
pub use prepare::{Prepared, prepare};
pub use recipe::{Changes, Recipe};
pub use salience::Salience;
pub use settings::{Apply, Orders, Scales, Settings};
pub use simulate::Simulation;
pub use step::{Needs, Step, StepRecord};
pub use transform::Transform;
