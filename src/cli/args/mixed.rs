//! Options of mixed precision.

use std::path::PathBuf;

use clap::Args;

use crate::cli::values::{Margin, SensitivityArg, Share};

/// What takes more bits than the rest.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Mixed precision")]
pub(crate) struct MixedArgs {
    /// Give linear layers larger types than TCQ4 where that saves most, up to this many bits a weight over the whole model
    #[arg(long, value_name = "BITS")]
    pub(crate) target_bpw: Option<Margin>,
    /// Mark the inputs that suffer most on the INT4 path of --activations for INT8, at most this share of the multiply-adds [default: a third]
    #[arg(long, value_name = "SHARE", num_args = 0..=1, default_missing_value = "0.3333333333333333")]
    pub(crate) act_aware: Option<Share>,
    /// How it is found out who suffers [default: kld where the model runs (`convert`), estimate otherwise]
    #[arg(long, value_enum)]
    pub(crate) sensitivity: Option<SensitivityArg>,
    /// Keep what was found out in this file, and take it from there the next time [default: OUTPUT.sensitivities.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) sensitivities: Option<PathBuf>,
}
