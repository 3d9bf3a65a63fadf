//! The GPU as the user asks for it: where the parts of CUDA are, and what happens where they are not.

use std::env;
use std::path::PathBuf;

use super::args::ToolkitArgs;
use crate::device::Setup;

/// Where NVRTC is and where kernels are kept.
pub(super) fn setup(args: &ToolkitArgs) -> Setup {
    let folder = |variable: &str| env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    let cache = args.kernel_cache.clone().or_else(|| user.map(|user| user.join("tcq4/kernels")));
    Setup { libraries: args.nvrtc_dir.clone(), cache }
}
