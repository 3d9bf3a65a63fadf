//! Conversion: plan, encode, write, verify; and the way back. Everything that reads one model and writes another.

mod dequantize;
mod encode;
mod hash;
mod keys;
mod plan;
mod run;
mod verify;

pub use dequantize::{Dequantized, dequantize};
pub use plan::{Conversion, PlanSettings, PlannedTensor, Reason, TypeRule, is_tcq4};
pub use run::{Converted, Job, TensorLoss, convert};
pub use verify::{TensorReport, Verification, verify, verify_against};
