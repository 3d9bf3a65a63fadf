//! The way to the network. Builds without the feature `download` have none of it.

#[cfg(feature = "download")]
mod client;
#[cfg(feature = "download")]
pub(super) use client::{download, with_retries};

#[cfg(not(feature = "download"))]
mod stub;
#[cfg(not(feature = "download"))]
pub(super) use stub::{download, with_retries};

use std::path::{Path, PathBuf};

/// Whether this build can fetch anything.
pub(super) const BUILT_IN: bool = cfg!(feature = "download");

/// A hidden file beside `path`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(suffix);
    path.with_file_name(name)
}
