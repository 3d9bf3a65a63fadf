//! The commands that measure models.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::quant::Activations;

/// `--simulate`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Simulate {
    /// INT8, a scale for 32 values
    A8,
    /// INT4, a signed scale for 256 values, times 0.9
    #[value(name = "a4-g256")]
    A4Group256,
    /// INT4, a signed scale for 32 values
    #[value(name = "a4-g32")]
    A4Group32,
    /// INT4 as the fork llama.cpp-rrs rounds: a symmetric scale for 256 values
    A4Fork,
}

impl From<Simulate> for Activations {
    fn from(simulate: Simulate) -> Self {
        match simulate {
            Simulate::A8 => Activations::Int8,
            Simulate::A4Group256 => Activations::Int4,
            Simulate::A4Group32 => Activations::Int4Group32,
            Simulate::A4Fork => Activations::Int4Fork,
        }
    }
}

use super::device::DeviceArgs;
use super::shared::DataArgs;
use crate::cli::values::{Margin, RuleArg, Share};

/// `tcq4 eval`
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The model; TCQ4 tensors are decoded into a temporary F16 copy first, unless this llama.cpp runs them itself
    pub(crate) model: PathBuf,
    /// A text; several are measured one by one, and averaged
    #[arg(short = 'f', long, value_name = "FILE", required_unless_present_any = ["logits", "dataset"])]
    pub(crate) text: Vec<PathBuf>,
    /// A data set by name (see `tcq4 datasets`) or a file, with a sampling rule if you like (repeatable)
    #[arg(short = 'd', long, value_name = "SRC[@RULE]")]
    pub(crate) dataset: Vec<String>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Compare with this model: KL divergence, both models side by side, nothing written to the disk
    #[arg(short = 'r', long, value_name = "MODEL")]
    pub(crate) reference: Option<PathBuf>,
    /// Compare with log-probabilities in a file of llama-perplexity (--kl-divergence-base), which holds the text too
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "dataset", "reference", "ctx", "stride"])]
    pub(crate) logits: Option<PathBuf>,
    /// Write the model's log-probabilities for --logits here and for llama-perplexity
    #[arg(long, value_name = "FILE", conflicts_with_all = ["reference", "logits", "stride"])]
    pub(crate) logits_out: Option<PathBuf>,
    /// Replace an existing --logits-out
    #[arg(long, requires = "logits_out")]
    pub(crate) force: bool,
    /// Round what enters the TCQ4 tensors as a runtime does; nothing else sees the rounded values, and a reference is run as it is
    #[arg(long, value_name = "PATH")]
    pub(crate) simulate: Option<Simulate>,
    /// Round what enters the tensors that would become TCQ4, in a model without any: what the rounding of activations alone costs
    #[arg(long, requires = "simulate")]
    pub(crate) simulate_all: bool,
    /// Round what enters every tensor the same way, even where the file asks for another path (`tcq4.<tensor>.activations`)
    #[arg(long, requires = "simulate")]
    pub(crate) ignore_marks: bool,
    /// Tokens a chunk
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub(crate) ctx: u32,
    /// Slide the window by so many tokens and score each token once, instead of the second half of chunks side by side; half of --ctx is usual
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1_048_575))]
    pub(crate) stride: Option<u32>,
    /// Use at most this many chunks of each text [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) chunks: Option<u32>,
    /// Layers to run on the GPU (builds with CUDA)
    #[arg(long, value_name = "LAYERS", default_value_t = 0)]
    pub(crate) ngl: u32,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// `tcq4 compare`
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The models, the first of which is the baseline that the others are compared with; TCQ4 tensors are decoded into temporary F16 copies
    #[arg(num_args = 2.., required = true, value_name = "MODEL")]
    pub(crate) models: Vec<PathBuf>,
    /// Measure the KL divergence from the baseline too: two models side by side, which takes twice as long
    #[arg(long)]
    pub(crate) kld: bool,
    /// A text to compare on (repeatable)
    #[arg(short = 'f', long, value_name = "FILE", required_unless_present = "dataset")]
    pub(crate) text: Vec<PathBuf>,
    /// A data set by name (see `tcq4 datasets`) or a file, with a sampling rule if you like (repeatable)
    #[arg(short = 'd', long, value_name = "SRC[@RULE]")]
    pub(crate) dataset: Vec<String>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Tokens a chunk
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub(crate) ctx: u32,
    /// Use at most this many chunks of each text [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) chunks: Option<u32>,
    /// The share of resamples that an interval holds
    #[arg(long, value_name = "SHARE", default_value = "0.95")]
    pub(crate) confidence: Share,
    /// How often the chunks are drawn again
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub(crate) resamples: u32,
    /// Seed of every random choice
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// When a model wins
    #[arg(long, value_enum, default_value_t = RuleArg::Interval)]
    pub(crate) rule: RuleArg,
    /// The margin of `--rule fixed`, in perplexity [default: 0.05]
    #[arg(long, value_name = "PPL")]
    pub(crate) margin: Option<Margin>,
    /// Write the results as a Markdown document
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Write the JSON record
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace existing outputs
    #[arg(long)]
    pub(crate) force: bool,
    /// Layers to run on the GPU (builds with CUDA)
    #[arg(long, value_name = "LAYERS", default_value_t = 0)]
    pub(crate) ngl: u32,
}
