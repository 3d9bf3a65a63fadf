//! The commands that look at files.

use std::path::PathBuf;

use clap::Args;

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
