//! Calibration: a text goes through the model, and what enters each matrix multiplication is summed up per input channel.
//! What the sums are good for (permutations, scales) is decided in `quant`.

pub mod collector;
pub mod hessian;
mod hessians;
pub mod input_moments;
mod legacy;
mod moments;
pub mod moments_store;
pub mod ops;
pub mod perms;
pub mod resume;
pub mod run;
pub mod stats;
pub mod store;
mod summer;

pub use hessian::Hessian;
pub use hessians::{Shard, second_moments};
pub use input_moments::{Block, InputMoments, MomentsRequest};
pub use moments_store::MomentsFile;
pub use perms::PermFile;
pub use run::{CalibrationOptions, calibrate, calibrate_with_moments};
pub use stats::{ChannelStats, SampleRows, Statistics};
pub use summer::Summer;
