//! One module a command: arguments in, library calls, text and record out.

pub(super) mod analyze;
mod analyze_output;
mod analyze_text;
pub(super) mod calibrate;
pub(super) mod compare;
mod compare_text;
pub(super) mod convert;
pub(super) mod datasets;
pub(super) mod dequantize;
pub(super) mod diff;
mod effort;
pub(super) mod eval;
mod eval_text;
pub(super) mod export;
mod export_row;
pub(super) mod inspect;
mod mixed;
mod mixed_losses;
mod mixed_text;
pub(super) mod perms;
mod plan_text;
mod produce;
pub(super) mod quantize;
mod statistics;
mod subject;
pub(super) mod verify;
