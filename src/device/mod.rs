//! GPUs through CUDA: compiles the kernels of `cuda/kernels`, launches them, checks them against the CPU and measures them.
//!
//! Everything is loaded at run time, so a machine without a driver builds this, runs all else, and gets error values here. What the kernels are for
//! is the business of higher floors.

pub mod bench;
mod blas;
mod cache;
pub mod check;
pub mod compile;
mod encoder;
mod gpu;
pub mod kernels;
mod launch;
mod launch_calibration;
mod library;
pub mod nvrtc;
mod oracle;
pub mod shapes;
pub mod sources;

pub use encoder::{EncodeTiles, TileEncoder};
pub use gpu::{Buffer, Facts, Gpu, Plain, Queue, Setup};
pub use launch::{Encoded, Sorted};
pub use launch_calibration::Rows;
