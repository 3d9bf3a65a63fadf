//! Calibration: a text goes through the model, and what enters each matrix multiplication is summed up per input channel.
//! What the sums are good for (permutations, scales) is decided in `quant`.

pub mod collector;
pub mod hessian;
mod hessians;
mod legacy;
mod moments;
pub mod ops;
pub mod perms;
pub mod resume;
pub mod run;
pub mod stats;
pub mod store;

pub use hessian::Hessian;
pub use hessians::second_moments;
pub use perms::PermFile;
pub use run::{CalibrationOptions, calibrate};
pub use stats::{ChannelStats, SampleRows, Statistics};
