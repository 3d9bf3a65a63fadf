//! Options of sequential conversion.

use clap::Args;

/// Whether later layers are measured behind quantised ones.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sequential")]
pub(crate) struct SequentialArgs {
    /// Quantise blocks in batches, each measured behind the quantised weights and activations (`--activations`) of those before it; the text
    /// runs once for each batch, and what is done is kept in OUTPUT.partial until the output is complete
    #[arg(long)]
    pub(crate) sequential: bool,
    /// Blocks of a batch [default: as many as fit into --memory, but no more than make eight batches]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) layer_batch: Option<u32>,
    /// Go on with a conversion that was interrupted, the result is the same: with --sequential after the last batch that was done, with --stats
    /// after the last chunk of text that was kept
    #[arg(long)]
    pub(crate) resume: bool,
}
