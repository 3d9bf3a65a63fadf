//! Finds and opens the shared libraries of the CUDA toolkit. A library or a function that is missing is an error value, never a panic.

use std::env;
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::error::DeviceError;

/// The major versions of the toolkit whose libraries are looked for, the best first.
const MAJORS: [u32; 2] = [13, 12];

/// An open library and where it was found.
#[derive(Debug)]
pub(super) struct Open {
    library: Library,
    path: PathBuf,
}

/// The file names that a library of the toolkit goes by.
pub(super) fn names(stem: &str) -> Vec<String> {
    if cfg!(windows) {
        return MAJORS.iter().map(|major| format!("{stem}64_{major}0_0.dll")).collect();
    }
    let of_majors = MAJORS.iter().map(|major| format!("lib{stem}.so.{major}"));
    std::iter::once(format!("lib{stem}.so")).chain(of_majors).collect()
}

/// Where a library may lie: in `folder` alone if one is given; else where the loader of the system looks, then in the folders of a toolkit.
fn candidates(stem: &str, folder: Option<&Path>) -> Vec<PathBuf> {
    let names = names(stem);
    if let Some(folder) = folder {
        return names.iter().map(|name| folder.join(name)).collect();
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let folders = toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|toolkit| toolkit.join("lib64"));
    let in_folders: Vec<PathBuf> =
        folders.flat_map(|folder| names.iter().map(move |name| folder.join(name)).collect::<Vec<_>>()).collect();
    names.into_iter().map(PathBuf::from).chain(in_folders).collect()
}

impl Open {
    /// Opens the first library of the toolkit with this stem (`nvrtc`, `cublas`).
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`], with `what` it is.
    pub(super) fn find(what: &'static str, stem: &str, folder: Option<&Path>) -> Result<Self, DeviceError> {
        let candidates = candidates(stem, folder);
        for path in &candidates {
            // SAFETY: loading runs the initialisers of a library that the user, or the system's configuration, chose under its official name.
            if let Ok(library) = unsafe { Library::new(path) } {
                return Ok(Self { library, path: path.clone() });
            }
        }
        let searched = match folder {
            Some(folder) => format!("{} in {}", names(stem).join(", "), folder.display()),
            None => names(stem).join(", "),
        };
        Err(DeviceError::NoLibrary { what, searched })
    }

    /// Gives a function of the library.
    ///
    /// # Safety
    /// `F` is the function's type, and what is returned is not called after `self` is dropped.
    ///
    /// # Errors
    /// [`DeviceError::NoFunction`].
    pub(super) unsafe fn function<F: Copy>(&self, name: &'static str) -> Result<F, DeviceError> {
        // SAFETY: as the caller promises.
        let found = unsafe { self.library.get::<F>(name) };
        found.map(|symbol| *symbol).map_err(|_| DeviceError::NoFunction { path: self.path.clone(), function: name })
    }

    /// Where it was found; a bare name where the system's loader found it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_says_where_it_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = Open::find("NVRTC", "nvrtc", Some(folder.path())).unwrap_err();
        let searched = format!("libnvrtc.so, libnvrtc.so.13, libnvrtc.so.12 in {}", folder.path().display());
        assert_eq!(error, DeviceError::NoLibrary { what: "NVRTC", searched });
    }

    #[test]
    fn a_file_that_is_no_library_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libnvrtc.so"), "not a library").unwrap();
        assert!(matches!(Open::find("NVRTC", "nvrtc", Some(folder.path())), Err(DeviceError::NoLibrary { .. })));
    }
}
