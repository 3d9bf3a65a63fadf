//! `tcq4 batch`

use std::path::PathBuf;

use clap::Args;

use super::shared::StoreArgs;
use crate::cli::values::Size;

/// `tcq4 batch`
#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// The batch (TOML; the README shows every key); relative paths in it are of its folder
    pub(crate) batch: PathBuf,
    /// Show what would be done, with disk, memory and, with --timed, time; fetch and convert nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With --dry-run: encode a sample and run one chunk of text for each job, to say how long it takes on this machine
    #[arg(long, requires = "dry_run")]
    pub(crate) timed: bool,
    /// Jobs at a time; each gets its part of the threads [default: `jobs` of the batch, or 1]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) jobs: Option<u32>,
    /// Memory of all jobs that run at a time [default: `memory` of the batch, or what is free]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Size>,
    /// Bytes that all jobs may write [default: `disk` of the batch, or what is free]
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<Size>,
    /// Append what happens to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
    /// Write the results: NAME.md, NAME.html, NAME.json or FOLDER/ for all of them, with tables as CSV and pictures as SVG and PNG; replaced if it is there
    #[arg(long, value_name = "PATH")]
    pub(crate) report: Option<PathBuf>,
    /// Keep numbers for scrapers in this file (OpenMetrics text)
    #[arg(long, value_name = "FILE")]
    pub(crate) metrics: Option<PathBuf>,
    /// Replace outputs that are there and not this batch's
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}
