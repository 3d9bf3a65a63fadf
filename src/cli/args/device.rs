//! The command about GPU kernels, and the options of those that can use a GPU.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::values::DeviceArg;

/// Where the parts of CUDA are.
#[derive(Debug, Clone, Args)]
pub(crate) struct ToolkitArgs {
    /// Folder of NVRTC and cuBLAS [default: where the system looks, CUDA_HOME, CUDA_PATH, /usr/local/cuda]
    #[arg(long, global = true, value_name = "DIR", env = "TCQ4_NVRTC_DIR", help_heading = "CUDA")]
    pub(crate) nvrtc_dir: Option<PathBuf>,
    /// Folder of compiled kernels [default: tcq4/kernels in the user's cache folder]
    #[arg(long, global = true, value_name = "DIR", env = "TCQ4_KERNEL_CACHE", help_heading = "CUDA")]
    pub(crate) kernel_cache: Option<PathBuf>,
}

/// What computes.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArgs {
    /// What encodes tiles; both write the same bytes. Where there is no GPU, the CPU does it, and that is said
    #[arg(long, value_enum, default_value_t = DeviceArg::Cpu, help_heading = "CUDA")]
    pub(crate) device: DeviceArg,
    #[command(flatten)]
    pub(crate) toolkit: ToolkitArgs,
}

/// `tcq4 kernels`
#[derive(Debug, Args)]
pub(crate) struct KernelsArgs {
    #[command(flatten)]
    pub(crate) toolkit: ToolkitArgs,
    #[command(subcommand)]
    pub(crate) command: KernelsCommand,
}

/// What is done with kernels.
#[derive(Debug, Subcommand)]
pub(crate) enum KernelsCommand {
    /// List them: what they do, what they take, what limits them
    List,
    /// Compile all of them; needs NVRTC but no GPU
    Compile {
        /// What to compile for: compute capabilities times ten
        #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "75,80,86,89,90,100,120")]
        arch: Vec<u32>,
    },
    /// Run them on random and on adversarial data, and compare with the CPU
    Check {
        /// Only kernels whose names contain one of these
        kernels: Vec<String>,
        /// Seed of the data
        #[arg(long, default_value_t = 42)]
        seed: u64,
    },
    /// Measure their speed beside the GPU's own copy and cuBLAS
    Bench {
        /// Only lines whose names contain one of these
        kernels: Vec<String>,
        /// Fewer shapes and shorter measurements
        #[arg(long)]
        quick: bool,
    },
}
