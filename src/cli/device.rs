//! The GPU as the user asks for it: where the parts of CUDA are, and what happens where they are not.

use std::env;
use std::path::PathBuf;

use serde::Serialize;

use super::Session;
use super::args::{DeviceArgs, ToolkitArgs};
use super::values::DeviceArg;
use crate::device::{Facts, Gpu, Setup};
use crate::error::Result;
use crate::tcq::Encoder;
use crate::util::progress::Progress;

/// Where NVRTC is and where kernels are kept.
pub(super) fn setup(args: &ToolkitArgs) -> Setup {
    let folder = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    let cache = args.kernel_cache.clone().or_else(|| user.map(|user| user.join("tcq4/kernels")));
    Setup { libraries: args.nvrtc_dir.clone(), cache }
}

/// What was asked for with `--device` and what became of it, for the record.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DeviceUse {
    asked: &'static str,
    used: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<Facts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
}

impl DeviceUse {
    /// Whether the CPU does what a GPU was meant to do.
    pub(super) fn fell_back(&self) -> bool {
        self.fallback.is_some()
    }
}

/// Opens the GPU if one is asked for, to encode. Where none is there, or no kernel of the encoder, says so: the CPU does its work.
///
/// # Errors
/// A GPU that is there and refuses to work.
pub(super) fn choose(session: &Session, args: &DeviceArgs, encoder: Encoder) -> Result<(Option<Gpu>, DeviceUse)> {
    let cpu = DeviceUse { asked: "cpu", used: "cpu", gpu: None, fallback: None };
    if args.device == DeviceArg::Cpu {
        return Ok((None, cpu));
    }
    let fall_back = |reason: String| {
        session.progress.note(&format!("--device cuda: {reason}; the CPU does the work"));
        Ok((None, DeviceUse { asked: "cuda", fallback: Some(reason), ..cpu }))
    };
    if encoder == Encoder::Weighted {
        return fall_back("there is no kernel of the weighted encoder".into());
    }
    match Gpu::open(&setup(&args.toolkit)) {
        Ok(gpu) => {
            let facts = gpu.facts().clone();
            Ok((Some(gpu), DeviceUse { asked: "cuda", used: "cuda", gpu: Some(facts), fallback: None }))
        }
        Err(error) if error.is_absence() => fall_back(error.to_string()),
        Err(error) => Err(error.into()),
    }
}
