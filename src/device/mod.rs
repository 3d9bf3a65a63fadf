//! GPUs through CUDA: compiles the kernels of `cuda/kernels`, launches them, checks them against the CPU and measures them.
//!
//! Everything is loaded at run time, so a machine without a driver builds this, runs all else, and gets error values here. What the kernels are for
//! is the business of higher floors.

mod cache;
mod library;
pub mod nvrtc;
