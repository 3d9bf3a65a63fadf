//! The command line as the user types it. Nothing is looked up or opened here; `settings.rs` resolves what is left open.

mod analyze;
mod batch;
mod datasets;
mod device;
mod evaluate;
mod export;
mod look;
mod mixed;
mod produce;
mod sequential;
mod shared;

use clap::{Args, Parser, Subcommand};

pub(crate) use self::analyze::{AnalyzeArgs, LookArgs};
pub(crate) use self::batch::BatchArgs;
pub(crate) use self::datasets::{DatasetsArgs, DatasetsCommand};
pub(crate) use self::device::{DeviceArgs, KernelsArgs, KernelsCommand, ToolkitArgs};
pub(crate) use self::evaluate::{CompareArgs, EvalArgs};
pub(crate) use self::export::{ChannelsArgs, ExportArgs, ExportWhat, RangesArgs, RowArgs, ScalesFromArgs};
pub(crate) use self::look::{DiffArgs, InspectArgs, VerifyArgs};
pub(crate) use self::produce::{
    CalibrateArgs, ConvertArgs, DequantizeArgs, MergeArgs, PermsArgs, QuantizeArgs, RoundingArgs,
};
pub(crate) use self::sequential::SequentialArgs;
pub(crate) use self::shared::{
    CalibrationArgs, DataArgs, MethodArgs, OutputArgs, PermsOutputArgs, ProductionArgs, StoreArgs, TypeArgs,
};
use crate::tcq::Isa;

/// Converts F16 GGUF models to TCQ4_K32: 4-bit weights for INT4 tensor cores, calibrated through llama.cpp.
#[derive(Debug, Parser)]
#[command(name = "tcq4", version, long_version = crate::cli::version::LONG.as_str(), max_term_width = 120, propagate_version = false)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused input, 4 fallbacks under --strict or experts below a threshold, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct GlobalArgs {
    /// Print one JSON record on stdout instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print nothing but errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more: log lines of this program and of llama.cpp
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Threads to work with [default: one a core]
    #[arg(short, long, global = true, value_name = "N", env = "TCQ4_THREADS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// SIMD path to use instead of the best one; every path writes the same bytes
    #[arg(long, global = true, value_name = "ISA", env = "TCQ4_ISA", hide = true)]
    pub(crate) isa: Option<Isa>,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Convert a model in one go: plan, calibrate, scale, permute, quantise, write, verify
    Convert(ConvertArgs),
    /// Run calibration text through llama.cpp and write the permutations, and the statistics if asked
    Calibrate(CalibrateArgs),
    /// Make permutations from a statistics file, an imatrix file or the model's structure, without running the model
    Perms(PermsArgs),
    /// Quantise with given statistics or permutations, without running the model
    Quantize(QuantizeArgs),
    /// Turn a TCQ4 model back into F16, BF16 or F32, so that any tool can read it
    Dequantize(DequantizeArgs),
    /// Put together what several machines made: parts of statistics, of second moments, of a model
    Merge(MergeArgs),
    /// Show what is in a GGUF file
    Inspect(InspectArgs),
    /// Prove a TCQ4 file sound, and measure it against its source
    Verify(VerifyArgs),
    /// Compare the metadata and tensors of two GGUF files
    Diff(DiffArgs),
    /// Measure the perplexity of a model on a text
    Eval(EvalArgs),
    /// List the data sets that have names, or fetch them
    Datasets(DatasetsArgs),
    /// Write numbers for other programs: rows of weights, channels, activation ranges, scales
    Export(ExportArgs),
    /// Compare models on texts: paired differences of their perplexities, with intervals
    Compare(CompareArgs),
    /// Show what quantisation does to a model, layer by layer
    Analyze(Box<AnalyzeArgs>),
    /// Run many conversions unattended: models and presets, gates, retries, reports; what is done is not done again
    Batch(BatchArgs),
    /// List, compile, check and measure the CUDA kernels
    Kernels(KernelsArgs),
}

impl Command {
    /// Whether llama.cpp computes for this command.
    pub(crate) fn runs_a_model(&self) -> bool {
        match self {
            Command::Convert(_) | Command::Calibrate(_) | Command::Eval(_) | Command::Compare(_) => true,
            Command::Batch(args) => args.timed,
            Command::Analyze(args) => !args.calibration.calibration.is_empty(),
            _ => false,
        }
    }
}
