//! The command that writes numbers for other programs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use regex::Regex;

use super::shared::MethodArgs;
use crate::cli::values::{NamesArg, RangesKind, ScaleFormatArg};

/// `tcq4 export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(subcommand)]
    pub(crate) what: ExportWhat,
}

/// What to export.
#[derive(Debug, Subcommand)]
pub(crate) enum ExportWhat {
    /// One output row of a weight, channel by channel: E[X], E[Xs], W, W_scaled, scale (CSV, NPZ, JSON)
    Row(RowArgs),
    /// What is known of every input channel: means, deviations, ranges (CSV)
    Channels(ChannelsArgs),
    /// The range of every weight's input (JSON)
    Ranges(RangesArgs),
    /// Activation scales from a file of ranges (JSON)
    Scales(ScalesFromArgs),
}

/// `tcq4 export row`
#[derive(Debug, Args)]
pub(crate) struct RowArgs {
    /// The model
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Its statistics, of `tcq4 calibrate --stats`
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: PathBuf,
    /// The weight, for instance blk.3.ffn_gate.weight (`.weight` may be left out)
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: String,
    /// Its output row, the first being 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) row: u64,
    /// All output rows in one file, each line with its row
    #[arg(long, conflicts_with = "row")]
    pub(crate) all_channels: bool,
    /// The folder to write to; it is made if need be
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) output: PathBuf,
    /// Replace existing files
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) method: MethodArgs,
}

/// `tcq4 export channels`
#[derive(Debug, Args)]
pub(crate) struct ChannelsArgs {
    /// Statistics, of `tcq4 calibrate --stats` or llama-imatrix
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: PathBuf,
    /// Only weights whose name matches (repeatable) [default: all]
    #[arg(long, value_name = "REGEX")]
    pub(crate) tensor: Vec<Regex>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace an existing file
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `tcq4 export ranges`
#[derive(Debug, Args)]
pub(crate) struct RangesArgs {
    /// Statistics, of `tcq4 calibrate --stats`
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: PathBuf,
    /// Which kind of file
    #[arg(long, value_enum, default_value_t = RangesKind::ActivationRanges)]
    pub(crate) kind: RangesKind,
    /// How names stand in it
    #[arg(long, value_enum, default_value_t = NamesArg::Module)]
    pub(crate) names: NamesArg,
    /// The file to write, as a rule activation_ranges.json or ranges_minmax.json
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace an existing file
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// `tcq4 export scales`
#[derive(Debug, Args)]
pub(crate) struct ScalesFromArgs {
    /// activation_ranges.json or ranges_minmax.json
    #[arg(long, value_name = "FILE")]
    pub(crate) from_ranges: PathBuf,
    /// What activations are quantised to
    #[arg(long, value_enum)]
    pub(crate) format: ScaleFormatArg,
    /// Give the linear layers of this model their scales, whether names in the file have `.weight` or not [default: names as in the file]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace an existing file
    #[arg(short, long)]
    pub(crate) force: bool,
}
