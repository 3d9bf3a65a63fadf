//! The command that looks after data sets.

use clap::{Args, Subcommand};

use super::shared::StoreArgs;

/// `tcq4 datasets`
#[derive(Debug, Args)]
pub(crate) struct DatasetsArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(subcommand)]
    pub(crate) command: Option<DatasetsCommand>,
}

/// What is done with data sets; they are listed if nothing is said.
#[derive(Debug, Subcommand)]
pub(crate) enum DatasetsCommand {
    /// Fetch data sets, their calibration and their evaluation part, so that later runs need no network
    Fetch {
        /// The data sets
        #[arg(required = true)]
        names: Vec<String>,
    },
}
