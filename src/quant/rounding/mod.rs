//! Chooses codes by what they do to a layer's output rather than by distance: the second moment H = E[x xᵀ] of the layer's input says how the
//! errors of different columns add up.
//!
//! Works on rotated weights and on tiles that an encoder has filled; the objective of a row with errors e is eᵀHe. Three moves: error
//! feedback (GPTQ in its LDLQ form), which chooses all codes anew column by column; refitting of steps and offsets with the codes kept; and
//! coordinate descent on single codes. The last two never make the objective larger. Where only means are known, `greedy` keeps each output's mean.

mod basis;
mod curvature;
mod greedy;
mod noise;
mod panel;
mod passes;

pub use basis::{gathered, importance, rotate, rotated, rotated_mean};
pub use curvature::{Curvature, Damping};
pub use greedy::{Flipped, flip_to_mean, unprotected};
pub use noise::ActivationNoise;
pub use passes::{Rounded, Rounding, round_stripes};
