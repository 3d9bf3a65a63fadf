//! What can go wrong between this program and a GPU.

use std::path::PathBuf;

use super::Class;

/// A GPU, its driver or its compiler that is not there, or not willing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The driver is not installed.
    #[error("this machine has no CUDA driver: {searched} cannot be loaded")]
    NoDriver {
        /// The libraries that were looked for.
        searched: String,
    },
    /// The driver is older than what this program was made for.
    #[error("the CUDA driver of this machine is too old: it has no `{function}`")]
    OldDriver {
        /// A function that it lacks.
        function: &'static str,
    },
    /// The driver finds no GPU.
    #[error("the CUDA driver finds no GPU: {reason}")]
    NoDevice {
        /// What the driver said.
        reason: String,
    },
    /// The GPU is older than what the kernels need.
    #[error("{name} has compute capability {major}.{minor}, the kernels need 7.5")]
    OldDevice {
        /// The GPU.
        name: String,
        /// Its compute capability, before the dot.
        major: u32,
        /// And behind it.
        minor: u32,
    },
    /// A library of the CUDA toolkit is not installed.
    #[error("{what} is not there: none of {searched} can be loaded")]
    NoLibrary {
        /// What it is.
        what: &'static str,
        /// The libraries that were looked for.
        searched: String,
    },
    /// A library lacks a function.
    #[error("{}: has no function `{function}`", path.display())]
    NoFunction {
        /// The library.
        path: PathBuf,
        /// The function.
        function: &'static str,
    },
    /// The compiler is of a later CUDA than the driver, which does not take what it makes.
    #[error("the driver, of CUDA {driver}, does not take what NVRTC {nvrtc} compiles")]
    NewCompiler {
        /// The version of NVRTC.
        nvrtc: String,
        /// The version of CUDA that the driver was made for.
        driver: String,
    },
    /// Rows are too wide for a kernel that keeps them in shared memory.
    #[error("{kernel} cannot take {k} channels: it needs {needed} B of shared memory, this GPU has {most} for it")]
    TooWide {
        /// The kernel.
        kernel: String,
        /// Channels of a row.
        k: usize,
        /// Bytes that it needs.
        needed: u32,
        /// Bytes that it can have.
        most: u32,
    },
    /// A kernel does not compile.
    #[error("{file} does not compile for {architecture}: {status}\n{log}")]
    Compile {
        /// The source, as it is named in `cuda/kernels`.
        file: String,
        /// What it was compiled for: `sm_90`.
        architecture: String,
        /// What NVRTC returned.
        status: String,
        /// The compiler's messages.
        log: String,
    },
    /// The compiler cannot make code for a GPU.
    #[error("NVRTC {version} knows no {architecture}")]
    Architecture {
        /// Its version.
        version: String,
        /// What it was asked for: `sm_90`.
        architecture: String,
    },
    /// The driver or a library refused something.
    #[error("the GPU cannot {action}: {reason}")]
    Driver {
        /// What was tried, as a verb and its object.
        action: String,
        /// What the driver said.
        reason: String,
    },
    /// A kernel does not give what the CPU gives.
    #[error("{failed} of {count} checks failed, the first: {first}")]
    Differs {
        /// How many checks failed.
        failed: usize,
        /// How many there were.
        count: usize,
        /// The first that failed and how.
        first: String,
    },
    /// There is no such kernel.
    #[error("no kernel is called `{name}`")]
    NoKernel {
        /// What was asked for.
        name: String,
    },
}

impl DeviceError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        let is_usage = self.is_absence() || matches!(self, DeviceError::NoKernel { .. });
        if is_usage { Class::Usage } else { Class::Failed }
    }

    /// Whether the machine lacks something, so that the CPU can do the work instead.
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            DeviceError::NoDriver { .. }
                | DeviceError::OldDriver { .. }
                | DeviceError::NoDevice { .. }
                | DeviceError::OldDevice { .. }
                | DeviceError::NoLibrary { .. }
                | DeviceError::NoFunction { .. }
                | DeviceError::NewCompiler { .. }
                | DeviceError::Architecture { .. }
        )
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            DeviceError::NoDriver { .. } => {
                "run this on a machine with an NVIDIA GPU; `tcq4 kernels compile` needs none"
            }
            DeviceError::OldDriver { .. } => "a driver of CUDA 12.0 or later is needed",
            DeviceError::NoDevice { .. } => {
                "see what `nvidia-smi` lists, and whether CUDA_VISIBLE_DEVICES hides the GPU; `tcq4 kernels compile` needs none"
            }
            DeviceError::NoLibrary { .. } => {
                "install it (NVRTC and cuBLAS come with the CUDA toolkit and as Python packages), and name its folder with --nvrtc-dir or TCQ4_NVRTC_DIR"
            }
            DeviceError::NoFunction { .. } => "this is not the library that its name says, or one from before CUDA 12",
            DeviceError::NewCompiler { .. } => {
                "install NVRTC 12 (`pip install nvidia-cuda-nvrtc-cu12`), or a driver as new as the compiler"
            }
            DeviceError::Architecture { .. } => "a newer CUDA toolkit may know it",
            DeviceError::NoKernel { .. } => "`tcq4 kernels list` names them",
            _ => return None,
        };
        Some(text.into())
    }
}
