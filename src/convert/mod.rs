//! Conversion: plan, encode, write, verify; and the way back. Everything that reads one model and writes another.

mod batches;
mod checkpoint;
mod compensate;
mod consume;
mod decode;
mod dequantize;
mod encode;
mod estimate;
mod floats;
mod hash;
mod keys;
mod marks;
mod merge_parts;
mod metadata;
mod parts;
mod plan;
mod record;
mod rows;
mod run;
pub mod sensitivities;
mod sequential;
mod source_hashes;
mod steps;
mod stripes;
mod units;
mod verify;

pub use batches::{
    CompensationLimits, ExpertMoments, MomentsUse, compensation_cost, compensation_limits, moments_requests, single_run,
};
pub use checkpoint::Checkpoint;
pub use compensate::{Codes, Compensation, Measure, Noise, OutputError, SecondMoments};
pub use consume::Consumption;
pub use dequantize::{Dequantized, dequantize};
pub use encode::read_rows;
pub use estimate::{EncodingTime, time_encoding};
pub use keys::permutations;
pub use marks::Marks;
pub use merge_parts::{MergedParts, merge_parts};
pub use metadata::{CalibrationValue, Provenance, output_metadata};
pub use parts::{Part, is_part};
pub use plan::{Conversion, PlanSettings, PlannedTensor, Reason, TypeRule, is_tcq4};
pub use run::{Converted, Job, Target, TensorLoss, convert, convert_part};
pub use sequential::{Sequential, Stream, layer_batch, sequential_cost};
pub use stripes::{Recipe, Stripe, Stripes, recorded_transforms};
pub use units::working_memory;
pub use verify::{TensorReport, Verification, verify, verify_against};
