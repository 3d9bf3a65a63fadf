//! The command line as the user types it. Nothing is looked up or opened here; `settings.rs` resolves what is left open.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::values::{ApplyArg, Compat, FloatType, OrderArg, SalienceArg, ScalesArg, Size, TensorRule};
use crate::gguf::GgmlType;
use crate::quant::Activations;
use crate::tcq::{Encoder, Isa};

/// Converts F16 GGUF models to TCQ4_K32: 4-bit weights for INT4 tensor cores, calibrated through llama.cpp.
#[derive(Debug, Parser)]
#[command(name = "tcq4", version, long_version = super::version::LONG.as_str(), max_term_width = 120, propagate_version = false)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused input, 4 fallbacks under --strict, 130 interrupted."
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
    /// Show what is in a GGUF file
    Inspect(InspectArgs),
    /// Prove a TCQ4 file sound, and measure it against its source
    Verify(VerifyArgs),
    /// Compare the metadata and tensors of two GGUF files
    Diff(DiffArgs),
    /// Measure the perplexity of a model on a text
    Eval(EvalArgs),
}

impl Command {
    /// Whether llama.cpp computes for this command.
    pub(crate) fn runs_a_model(&self) -> bool {
        matches!(self, Command::Convert(_) | Command::Calibrate(_) | Command::Eval(_))
    }
}

/// How calibration runs the model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct CalibrationArgs {
    /// Calibration text: a text, .json or .jsonl file (repeatable)
    #[arg(short, long = "calibration", value_name = "FILE")]
    pub(crate) calibration: Vec<PathBuf>,
    /// Use at most this many chunks of text [default: 128; for `convert` 32 where the model has no experts]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) samples: Option<u32>,
    /// Tokens a chunk
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub(crate) ctx: u32,
    /// Seed of every random choice
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Layers to run on the GPU (builds with CUDA)
    #[arg(long, value_name = "LAYERS", default_value_t = 0)]
    pub(crate) ngl: u32,
}

/// How weights are prepared and encoded.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Method")]
pub(crate) struct MethodArgs {
    /// Order of the channels: how they are dealt over the 256-column chunks
    #[arg(long, value_enum)]
    pub(crate) order: Option<OrderArg>,
    /// Channel scales, folded into the tensors that produce the activations
    #[arg(long, value_enum)]
    pub(crate) scales: Option<ScalesArg>,
    /// What AWQ calls salient: E|x| or E[x²]
    #[arg(long, value_enum, default_value_t = SalienceArg::L2)]
    pub(crate) salience: SalienceArg,
    /// Steps of AWQ's grid over α
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) alpha_grid: u32,
    /// Whether permutations are applied at run time or folded into neighbouring weights
    #[arg(long, value_enum, default_value_t = ApplyArg::Runtime)]
    pub(crate) perm_apply: ApplyArg,
    /// Activation quantiser of the run time that `--order auto` and `--scales awq` assume: none, int8, int4, int4-group32, int4-fork
    #[arg(long, value_name = "PATH", default_value_t = Activations::Int8)]
    pub(crate) activations: Activations,
    /// Tile encoder, default or parity: `parity` writes the bytes of the llama.cpp-rrs quantiser, `default` never has a larger error
    #[arg(long, default_value_t = Encoder::Default)]
    pub(crate) encoder: Encoder,
}

/// Which tensor becomes what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Types")]
pub(crate) struct TypeArgs {
    /// Type of the token embedding [default: q6_k, or q8_0 where columns are no multiple of 256]
    #[arg(long, value_name = "TYPE")]
    pub(crate) embedding_type: Option<GgmlType>,
    /// Type of the output head, a tied embedding included [default: as above]
    #[arg(long, value_name = "TYPE")]
    pub(crate) output_type: Option<GgmlType>,
    /// Type of linear layers that do not fit TCQ4_K32
    #[arg(long, value_name = "TYPE", default_value_t = GgmlType::Q8_0)]
    pub(crate) fallback: GgmlType,
    /// Type of the tensors whose name matches a regular expression; the first match wins (repeatable)
    #[arg(long = "tensor-type", value_name = "REGEX=TYPE")]
    pub(crate) tensor_types: Vec<TensorRule>,
    /// Refuse substitutions: exit with code 4 instead of falling back
    #[arg(long)]
    pub(crate) strict: bool,
    /// Accept a source that is quantised already: it is decoded by ggml first
    #[arg(long)]
    pub(crate) allow_requantize: bool,
    /// Write type ids that another program reads
    #[arg(long, value_enum)]
    pub(crate) compat: Option<Compat>,
}

/// How the output is written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Replace an existing output
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Show the plan, tensor by tensor, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Write as many shards as the source has
    #[arg(long, conflicts_with = "split_max_size")]
    pub(crate) keep_split: bool,
    /// Write shards of at most this size, for instance 4G
    #[arg(long, value_name = "SIZE")]
    pub(crate) split_max_size: Option<Size>,
}

/// What every command takes that writes a TCQ4 model.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProductionArgs {
    #[command(flatten)]
    pub(crate) method: MethodArgs,
    #[command(flatten)]
    pub(crate) types: TypeArgs,
    #[command(flatten)]
    pub(crate) out: OutputArgs,
}

/// What every command takes that writes permutations.
#[derive(Debug, Clone, Args)]
pub(crate) struct PermsOutputArgs {
    /// The permutations to write (perms.json of `llama-quantize --tcq4-perms`)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Order of the channels [default: zigzag]
    #[arg(long, value_enum)]
    pub(crate) order: Option<OrderArg>,
    /// Replace existing outputs
    #[arg(short, long)]
    pub(crate) force: bool,
}

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

/// `tcq4 inspect`
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Any GGUF file
    pub(crate) file: PathBuf,
    /// Show every tensor and every key instead of a summary
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// `tcq4 verify`
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The TCQ4 model
    pub(crate) file: PathBuf,
    /// The model it was made from: report every tensor's relative error
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: Option<PathBuf>,
    /// Show every tensor instead of the worst ones
    #[arg(short, long)]
    pub(crate) all: bool,
}

/// `tcq4 diff`
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// One GGUF file
    pub(crate) a: PathBuf,
    /// Another
    pub(crate) b: PathBuf,
}

/// `tcq4 eval`
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The model; TCQ4 tensors are decoded into a temporary F16 copy first
    pub(crate) model: PathBuf,
    /// The text
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Tokens a chunk
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub(crate) ctx: u32,
    /// Use at most this many chunks [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) chunks: Option<u32>,
    /// Layers to run on the GPU (builds with CUDA)
    #[arg(long, value_name = "LAYERS", default_value_t = 0)]
    pub(crate) ngl: u32,
}
