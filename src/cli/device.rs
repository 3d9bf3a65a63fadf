//! The GPU as the user asks for it: where the parts of CUDA are, and what happens where they are not.

use std::sync::Arc;

use serde::Serialize;

use super::Session;
use super::args::{DeviceArgs, ToolkitArgs};
use super::data;
use super::values::DeviceArg;
use crate::calib::Summer;
use crate::device::{Facts, Gpu, RowSums, Setup};
use crate::error::Result;
use crate::tcq::Encoder;
use crate::util::progress::Progress;

/// Where NVRTC is and where kernels are kept.
pub(super) fn setup(args: &ToolkitArgs) -> Setup {
    let cache = args.kernel_cache.clone().or_else(|| data::user_cache().map(|user| user.join("tcq4/kernels")));
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

/// The GPU that was asked for, or what is instead of it.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) gpu: Option<Arc<Gpu>>,
    pub(super) use_: DeviceUse,
}

impl Device {
    const CPU: Self = Self { gpu: None, use_: DeviceUse { asked: "cpu", used: "cpu", gpu: None, fallback: None } };

    /// The CPU where a GPU was asked for, which is said.
    fn fallen_back(session: &Session, reason: String) -> Self {
        session.progress.note(&format!("--device cuda: {reason}; the CPU does the work"));
        Self { gpu: None, use_: DeviceUse { asked: "cuda", fallback: Some(reason), ..Self::CPU.use_ } }
    }

    /// What sums up rows of activations.
    ///
    /// # Errors
    /// A GPU that is there and refuses to work.
    pub(super) fn summer(&self) -> Result<Summer> {
        let sums = self.gpu.clone().map(RowSums::new).transpose()?;
        Ok(sums.map_or_else(Summer::default, |sums| Summer::on(Arc::new(sums))))
    }
}

impl Session {
    /// Opens the GPU if one is asked for, once. Where none is there, says so: the CPU does its work.
    ///
    /// # Errors
    /// A GPU that is there and refuses to work.
    pub(super) fn device(&self, args: &DeviceArgs) -> Result<&Device> {
        if let Some(device) = self.device.get() {
            return Ok(device);
        }
        let device = match args.device {
            DeviceArg::Cpu => Device::CPU,
            DeviceArg::Cuda => match Gpu::open(&setup(&args.toolkit)) {
                Ok(gpu) => {
                    let facts = Some(gpu.facts().clone());
                    let use_ = DeviceUse { asked: "cuda", used: "cuda", gpu: facts, fallback: None };
                    Device { gpu: Some(Arc::new(gpu)), use_ }
                }
                Err(error) if error.is_absence() => Device::fallen_back(self, error.to_string()),
                Err(error) => return Err(error.into()),
            },
        };
        Ok(self.device.get_or_init(|| device))
    }

    /// The device to encode on: that which was asked for, unless it has no kernel of the encoder, which is said.
    ///
    /// # Errors
    /// As [`Self::device`].
    pub(super) fn encoding_device(&self, args: &DeviceArgs, encoder: Encoder) -> Result<Device> {
        let device = self.device(args)?;
        if device.gpu.is_some() && encoder == Encoder::Weighted {
            return Ok(Device::fallen_back(self, "there is no kernel of the weighted encoder".into()));
        }
        Ok(device.clone())
    }
}
