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

/// `tcq4 eval`
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The model; TCQ4 tensors are decoded into a temporary F16 copy first, unless this llama.cpp runs them itself
    pub(crate) model: PathBuf,
    /// A text; several are measured one by one, and averaged
    #[arg(short = 'f', long, value_name = "FILE", required_unless_present = "logits")]
    pub(crate) text: Vec<PathBuf>,
    /// Compare with this model: KL divergence, both models side by side, nothing written to the disk
    #[arg(short = 'r', long, value_name = "MODEL")]
    pub(crate) reference: Option<PathBuf>,
    /// Compare with log-probabilities in a file of llama-perplexity (--kl-divergence-base), which holds the text too
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "reference", "ctx", "stride"])]
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
}
