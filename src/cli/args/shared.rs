//! Groups of options that several commands take.

use std::path::PathBuf;

use clap::Args;

use super::device::DeviceArgs;
use super::mixed::MixedArgs;
use crate::cli::values::{ApplyArg, Compat, OrderArg, SalienceArg, ScalesArg, Size, TensorRule};
use crate::gguf::GgmlType;
use crate::quant::Activations;
use crate::tcq::Encoder;

/// How calibration runs the model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Calibration")]
pub(crate) struct CalibrationArgs {
    /// Calibration text (repeatable): a data set (see `tcq4 datasets`) or a text, .json, .jsonl or .csv file, also with .gz; with a sampling
    /// rule (@RULE) and a share of the chunks (:WEIGHT) if you like: c4@texts:0.3
    #[arg(short, long = "calibration", value_name = "SRC")]
    pub(crate) calibration: Vec<String>,
    /// Say how much of the calibration text stands in this evaluation text, a data set or a file
    #[arg(long, value_name = "SRC", requires = "calibration")]
    pub(crate) check_overlap: Option<String>,
    /// Use at most this many chunks of text [default: by --preset 6, 32 or 64; 128 with experts and for other
    /// commands]
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
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

/// Where texts come from and how they are read.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Texts")]
pub(crate) struct DataArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Column of CSV files and key of JSON samples that holds the text [default: text]; columns of a CSV file without names are numbered: 2+3
    #[arg(long, value_name = "NAME")]
    pub(crate) text_column: Option<String>,
    /// Let the text spell control tokens; conversations do in any case
    #[arg(long)]
    pub(crate) parse_special: bool,
}

/// Where data sets lie.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Texts")]
pub(crate) struct StoreArgs {
    /// Folder of the data sets [default: tcq4/datasets in the user's cache folder]
    #[arg(long, global = true, value_name = "DIR", env = "TCQ4_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Fetch nothing from the network
    #[arg(long, global = true, env = "TCQ4_OFFLINE", value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) offline: bool,
    /// Server to fetch from instead of https://HOST/PATH: it has everything under /HOST/PATH
    #[arg(long, global = true, value_name = "URL", env = "TCQ4_DATA_MIRROR")]
    pub(crate) data_mirror: Option<String>,
}

/// How weights are prepared and encoded.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Method")]
pub(crate) struct MethodArgs {
    /// Recipe (TOML, its keys are these options without dashes before them); options given here replace what it says
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: Option<PathBuf>,
    /// Order of the channels: how they are dealt over the 256-column chunks [default: zigzag; none without statistics]
    #[arg(long, value_enum)]
    pub(crate) order: Option<OrderArg>,
    /// Channel scales, folded into the tensors that produce the activations [default: closed-form; none without statistics]
    #[arg(long, value_enum)]
    pub(crate) scales: Option<ScalesArg>,
    /// What AWQ calls salient [default: l2]
    #[arg(long, value_enum)]
    pub(crate) salience: Option<SalienceArg>,
    /// Steps of AWQ's grid over α [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) alpha_grid: Option<u32>,
    /// Whether permutations are applied at run time or folded into neighbouring weights [default: runtime]
    #[arg(long, value_enum)]
    pub(crate) perm_apply: Option<ApplyArg>,
    /// Activation quantiser of the run time that `--order auto` and `--scales awq` assume: none, int8, int4, int4-group32, int4-fork [default: int8]
    #[arg(long, value_name = "PATH")]
    pub(crate) activations: Option<Activations>,
    /// Tile encoder, default, parity or weighted: `parity` writes the bytes of the llama.cpp-rrs quantiser, `default` never has a larger error,
    /// `weighted` lets errors count by the second moments of the inputs [default: default]
    #[arg(long)]
    pub(crate) encoder: Option<Encoder>,
}

/// Which tensor becomes what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Types")]
pub(crate) struct TypeArgs {
    /// Type of the token embedding [default: q6_k, or q8_0 where columns are no multiple of 256]
    #[arg(long, value_name = "TYPE")]
    pub(crate) embedding_type: Option<GgmlType>,
    /// Type of the output head, a tied embedding included [default: as above; q8_0 with `--preset best`]
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
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(crate) struct OutputArgs {
    /// Replace an existing output
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Show the plan, tensor by tensor, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --dry-run: encode a sample and run one chunk of text, to say how long the work takes on this machine
    #[arg(long, requires = "dry_run")]
    pub(crate) timed: bool,
    /// Print the recipe that would be followed, as TOML for --recipe, and do nothing else
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) print_recipe: bool,
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
    pub(crate) mixed: MixedArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
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
