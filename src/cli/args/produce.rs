//! The commands that make files.

use std::path::PathBuf;

use clap::Args;

use super::shared::{CalibrationArgs, PermsOutputArgs, ProductionArgs};
use crate::cli::values::FloatType;

/// `tcq4 convert`
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The F16, BF16 or F32 model; of a sharded one, any shard
    pub(crate) model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Keep the calibration statistics in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
    #[command(flatten)]
    pub(crate) production: ProductionArgs,
}

/// `tcq4 calibrate`
#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    /// The model to run
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) perms: PermsOutputArgs,
    /// Keep the statistics in this file, which `llama-quantize --imatrix` reads too
    #[arg(long, value_name = "FILE", requires = "calibration")]
    pub(crate) stats: Option<PathBuf>,
    /// Continue a run that was interrupted
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
}

/// `tcq4 perms`
#[derive(Debug, Args)]
pub(crate) struct PermsArgs {
    /// The model that the permutations are for
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Statistics of `tcq4 calibrate --stats` or `llama-imatrix` [default: the model's structure alone]
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) perms: PermsOutputArgs,
}

/// `tcq4 quantize`
#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The F16, BF16 or F32 model; of a sharded one, any shard
    pub(crate) model: PathBuf,
    /// The file to write
    pub(crate) output: PathBuf,
    /// Statistics of `tcq4 calibrate --stats` or `llama-imatrix`
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,
    /// Permutations of `tcq4 calibrate` or `tcq4 perms`
    #[arg(long, value_name = "FILE", conflicts_with = "order")]
    pub(crate) perms: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) production: ProductionArgs,
}

/// `tcq4 dequantize`
#[derive(Debug, Args)]
pub(crate) struct DequantizeArgs {
    /// The TCQ4 model
    pub(crate) model: PathBuf,
    /// The file to write
    pub(crate) output: PathBuf,
    /// Type of the tensors that were TCQ4
    #[arg(long = "type", value_enum, default_value_t = FloatType::F16)]
    pub(crate) float_type: FloatType,
    /// Replace an existing output
    #[arg(short, long)]
    pub(crate) force: bool,
}
