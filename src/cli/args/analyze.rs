//! `tcq4 analyze`

use std::path::PathBuf;

use clap::Args;

use super::shared::{CalibrationArgs, MethodArgs};

/// `tcq4 analyze`
#[derive(Debug, Args)]
pub(crate) struct AnalyzeArgs {
    /// The F16, BF16 or F32 model, as it is before conversion; of a sharded one, any shard
    pub(crate) model: PathBuf,
    /// Statistics of `tcq4 calibrate --stats` or `llama-imatrix`; without them and without -c only the weights are looked at
    #[arg(long, value_name = "FILE", conflicts_with = "calibration")]
    pub(crate) stats: Option<PathBuf>,
    /// The converted file: look at its weights, scales and orders instead of those that `convert` would make
    #[arg(long, value_name = "FILE", conflicts_with_all = ["order", "scales"])]
    pub(crate) converted: Option<PathBuf>,
    /// Write the analysis here: NAME.html for a page that needs no network, NAME.json for the record, FOLDER/ for both with every table as CSV and
    /// every plot as SVG and PNG
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Replace an existing output
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) look: LookArgs,
    #[command(flatten)]
    pub(crate) calibration: CalibrationArgs,
    #[command(flatten)]
    pub(crate) method: MethodArgs,
}

/// What is looked at closely, and what counts as bad.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Analysis")]
pub(crate) struct LookArgs {
    /// Draw the curves of this layer (repeatable) [default: the first, the middle, the last and the worst one]
    #[arg(long, value_name = "N")]
    pub(crate) layer: Vec<u32>,
    /// Draw the curves of this tensor or input group (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: Vec<String>,
    /// Look at this many output rows of each matrix, at most; more is slower and less noisy
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    pub(crate) rows: u32,
    /// A pre-activation below this counts as dead
    #[arg(long, value_name = "VALUE", default_value_t = -3.0, allow_negative_numbers = true, value_parser = crate::cli::values::finite)]
    pub(crate) tau: f64,
    /// Fail (exit code 4) if an expert has seen fewer tokens
    #[arg(long, value_name = "N")]
    pub(crate) min_expert_tokens: Option<u64>,
    /// Fail (exit code 4) if an expert has seen less than this part of an even split, for instance 0.1
    #[arg(long, value_name = "SHARE", value_parser = crate::cli::values::finite)]
    pub(crate) min_expert_share: Option<f64>,
}
