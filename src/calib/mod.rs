//! Calibration: a text goes through the model, and what enters each matrix multiplication is summed up per input channel.
//! What the sums are good for (permutations, scales) is decided in `quant`.

pub mod collector;
mod container;
pub mod hessian;
mod hessians;
pub mod input_moments;
mod legacy;
mod moments;
pub mod moments_store;
pub mod ops;
pub mod part;
pub mod perms;
pub mod resume;
pub mod run;
pub mod stats;
pub mod store;
mod summer;
pub mod sums;

pub use hessian::Hessian;
pub use hessians::second_moments;
pub use input_moments::{Block, InputMoments, MomentsRequest};
pub use moments_store::MomentsFile;
pub use part::StatisticsPart;
pub use perms::PermFile;
pub use run::{CalibrationOptions, calibrate, calibrate_part, calibrate_with_moments};
pub use stats::{ChannelStats, SampleRows, Statistics};
pub use summer::Summer;
pub use sums::ChannelSums;

pub use crate::util::shard::Shard;
