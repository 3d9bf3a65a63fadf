//! The commands that measure models.

use std::path::PathBuf;

use clap::Args;

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
