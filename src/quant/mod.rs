//! Everything that is decided before a weight is encoded: channel scales, channel orders, and how both are folded into the model.
//!
//! The algorithms are pure functions of numbers; only [`prepare()`] and what it is made of know models and statistics.

pub mod act_aware;
pub mod activation;
pub mod allocate;
pub mod evidence;
pub mod fold;
mod generic;
pub mod input;
pub mod mixed;
pub mod objective;
pub mod outcome;
pub mod permute;
pub mod prepare;
pub mod recipe;
pub mod rounding;
pub mod salience;
pub mod scale;
pub mod sensitivity;
pub mod settings;
pub mod step;
mod study;
pub mod transform;

pub use act_aware::{ActAware, GroupLoss, GroupPath};
pub use activation::Activations;
pub use allocate::{Allocation, Choice, allocate};
pub use evidence::ReadRows;
pub use input::InputRounding;
pub use mixed::{Candidate, Candidates, TypeChoice, TypeChoices, Whole};
pub use outcome::{Applied, Grounds, GroupOutcome, Measured, ScaleOutcome};
pub use permute::{Channels, Order};
pub use prepare::{Prepared, prepare};
pub use recipe::{Changes, Recipe};
pub use salience::Salience;
pub use sensitivity::{Sampler, Sensitivity, kind_of, runs_of_kinds, spread_over};
pub use settings::{Apply, Orders, Scales, Settings};
pub use step::{Needs, Step, StepRecord};
pub use transform::Transform;
