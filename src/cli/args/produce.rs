//! The commands that make files.

use std::path::PathBuf;

use clap::Args;

use super::device::DeviceArgs;
use super::sequential::SequentialArgs;
use super::shared::{CalibrationArgs, PermsOutputArgs, ProductionArgs};
use crate::cli::values::{FloatType, Margin, OrderArg, PresetArg, RoundingArg, Size};
use crate::util::shard::Shard;

/// How codes are chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Rounding")]
pub(crate) struct RoundingArgs {
    /// How much work goes into the weights; decides what neither an option nor --recipe does [default: balanced]
    #[arg(long, value_enum)]
    pub(crate) preset: Option<PresetArg>,
    /// How codes are chosen [default: gptq with `--preset best`, greedy with `balanced`, nearest with `fast` or without
    /// statistics]
    #[arg(long, value_enum)]
    pub(crate) rounding: Option<RoundingArg>,
    /// What is added to the diagonal of a second moment, as a share of its mean; ten times more where that is not enough [default: 0.01]
    #[arg(long, value_name = "SHARE")]
    pub(crate) damp: Option<Margin>,
    /// Round the columns with the largest second moments first (the default)
    #[arg(long, overrides_with = "no_act_order")]
    pub(crate) act_order: bool,
    /// Round the columns in their order
    #[arg(long, overrides_with = "act_order")]
    pub(crate) no_act_order: bool,
    /// How much of the shrinking of weights `--rounding gptaq` does, as a share of what the least error asks for [default: 1]
    #[arg(long, value_name = "SHARE")]
    pub(crate) shrink: Option<Margin>,
    /// Rounds of refitting scales and moving single codes after GPTQ [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) refine: Option<u32>,
    /// Memory for second moments and the work on them [default: 4GiB]; with less the text runs more often, and an input that does not fit by itself
    /// is rounded in blocks of columns
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
}

/// `tcq4 convert`
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The F16, BF16 or F32 model; of a sharded one, any shard
    pub(crate) model: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "print_recipe")]
    pub(crate) output: Option<PathBuf>,
    /// Keep the calibration statistics in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,
    /// Keep the second moments of GPTQ in this file, or take them from there if it is of the same model, text and setting
    #[arg(long, value_name = "FILE")]
    pub(crate) second_moments: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rounding: RoundingArgs,
    #[command(flatten)]
    pub(crate) sequential: SequentialArgs,
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
    /// The permutations to write (perms.json of `llama-quantize --tcq4-perms`); parts have none, `tcq4 perms` makes them of what they merge to
    #[arg(short, long, value_name = "FILE", required_unless_present = "shard")]
    pub(crate) output: Option<PathBuf>,
    /// Order of the channels [default: zigzag]
    #[arg(long, value_enum)]
    pub(crate) order: Option<OrderArg>,
    /// Replace existing outputs
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Run only every Nth chunk of the text, from the Ith on; --stats and --second-moments are parts then, which `tcq4 merge` puts together to the
    /// bytes of one run
    #[arg(long, value_name = "I/N", requires = "calibration", conflicts_with_all = ["output", "order"])]
    pub(crate) shard: Option<Shard>,
    /// Keep the statistics in this file, which `llama-quantize --imatrix` reads too
    #[arg(long, value_name = "FILE", requires = "calibration")]
    pub(crate) stats: Option<PathBuf>,
    /// Keep second moments in this file, by which `quantize --rounding gptq` chooses codes
    #[arg(long, value_name = "FILE", requires = "calibration")]
    pub(crate) second_moments: Option<PathBuf>,
    /// Memory for second moments [default: 4G]; with less the text runs more often
    #[arg(long, value_name = "SIZE", requires = "second_moments")]
    pub(crate) memory: Option<Size>,
    /// Continue a run that was interrupted
    #[arg(long)]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
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
    #[arg(required_unless_present = "print_recipe")]
    pub(crate) output: Option<PathBuf>,
    /// Statistics of `tcq4 calibrate --stats` or `llama-imatrix`
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,
    /// Permutations of `tcq4 calibrate` or `tcq4 perms`
    #[arg(long, value_name = "FILE", conflicts_with = "order")]
    pub(crate) perms: Option<PathBuf>,
    /// Second moments of `tcq4 calibrate --second-moments`, for `--rounding gptq`
    #[arg(long, value_name = "FILE")]
    pub(crate) second_moments: Option<PathBuf>,
    /// Write only the Ith of N parts of the tensors, about equal in bytes; `tcq4 merge` puts the parts together to the bytes of one run
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<Shard>,
    /// Delete each shard of the model as soon as what is made of it is written, verified and synced, for disks without room for both; run again after an
    /// interruption, it goes on
    #[arg(long, conflicts_with_all = ["shard", "target_bpw", "act_aware"])]
    pub(crate) delete_source_shards: bool,
    #[command(flatten)]
    pub(crate) rounding: RoundingArgs,
    #[command(flatten)]
    pub(crate) production: ProductionArgs,
}

/// `tcq4 merge`
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// Parts that --shard made, of statistics, second moments or a model; or statistics or second moments of several texts
    #[arg(required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace an existing output
    #[arg(short, long)]
    pub(crate) force: bool,
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
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}
