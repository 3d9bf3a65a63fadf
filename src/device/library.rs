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

/// The file names that a library of the toolkit goes by, the best first: major versions up to `newest`, which the driver takes; that which names none;
/// those that are too new, but may do.
fn names(stem: &str, newest: u32) -> Vec<String> {
    let of = |major: u32| format!("lib{stem}.so.{major}");
    let (good, new): (Vec<u32>, Vec<u32>) = MAJORS.into_iter().partition(|&major| major <= newest);
    let good = good.into_iter().map(of);
    good.chain([format!("lib{stem}.so")]).chain(new.into_iter().map(of)).collect()
}

/// Where a library may lie: in `folder` alone if one is given; else, name by name, where the loader of the system looks, then in the folders of a
/// toolkit.
fn candidates(names: &[String], folder: Option<&Path>) -> Vec<PathBuf> {
    if let Some(folder) = folder {
        return names.iter().map(|name| folder.join(name)).collect();
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let folders = toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|toolkit| toolkit.join("lib64"));
    let folders: Vec<PathBuf> = [PathBuf::new()].into_iter().chain(folders).collect();
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).collect()
}

impl Open {
    /// Opens the first library of the toolkit with this stem (`nvrtc`, `cublas`); those of major versions above `newest` only if there is no other.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`], with `what` it is.
    pub(super) fn find(
        what: &'static str,
        stem: &str,
        newest: u32,
        folder: Option<&Path>,
    ) -> Result<Self, DeviceError> {
        let names = names(stem, newest);
        for path in candidates(&names, folder) {
            // SAFETY: loading runs the initialisers of a library that the user, or the system's configuration, chose under its official name.
            if let Ok(library) = unsafe { Library::new(&path) } {
                return Ok(Self { library, path });
            }
        }
        let searched = match folder {
            Some(folder) => format!("{} in {}", names.join(", "), folder.display()),
            None => names.join(", "),
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
        let error = Open::find("NVRTC", "nvrtc", 13, Some(folder.path())).unwrap_err();
        let searched = format!("libnvrtc.so.13, libnvrtc.so.12, libnvrtc.so in {}", folder.path().display());
        assert_eq!(error, DeviceError::NoLibrary { what: "NVRTC", searched });
    }

    #[test]
    fn a_file_that_is_no_library_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libnvrtc.so"), "not a library").unwrap();
        assert!(matches!(Open::find("NVRTC", "nvrtc", 13, Some(folder.path())), Err(DeviceError::NoLibrary { .. })));
    }

    #[test]
    fn what_is_newer_than_the_driver_is_the_last_resort() {
        assert_eq!(names("nvrtc", 12), ["libnvrtc.so.12", "libnvrtc.so", "libnvrtc.so.13"]);
        assert_eq!(names("nvrtc", 14), ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]);
        // A version that the driver takes is taken from wherever it lies.
        let candidates = candidates(&names("nvrtc", 12), None);
        let last_old = candidates.iter().rposition(|path| path.ends_with("libnvrtc.so.12"));
        assert!(last_old < candidates.iter().position(|path| path.ends_with("libnvrtc.so.13")));
    }
}
