//! What the tests share: temporary folders, tiny models, raw GGUF bytes, measured allocation.

pub mod alloc;
pub mod analysis;
pub mod browser;
pub mod cmd;
pub mod evidence;
pub mod mount;
pub mod raw;
#[cfg(feature = "download")]
pub mod server;
pub mod tiny_model;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tcq4::Error;

/// A temporary folder.
pub struct Dir(tempfile::TempDir);

impl Dir {
    /// Makes a folder that is removed at the end of the test.
    pub fn new() -> Dir {
        Dir(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Makes a folder in memory where the system has one, for thousands of small files; on disk otherwise.
    pub fn in_memory() -> Dir {
        tempfile::tempdir_in("/dev/shm").map_or_else(|_| Dir::new(), Dir)
    }

    /// Gives the folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Gives the path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        path
    }

    /// Lists the names in it, sorted, hidden ones too.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).expect("a readable folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Gives the message of an error with this folder's path taken out.
    pub fn message(&self, error: &Error) -> String {
        error.to_string().replace(&format!("{}/", self.path().display()), "")
    }
}

/// Says why a test did not run. Written past the test harness, which would swallow the output of a test that passes.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped {name}: {reason}");
}

/// The Python that has numpy: `TCQ4_PYTHON`, or `python3`; nothing if that has none.
pub fn python_with_numpy() -> Option<std::ffi::OsString> {
    let python = std::env::var_os("TCQ4_PYTHON").unwrap_or_else(|| "python3".into());
    let numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    numpy.is_ok_and(|done| done.status.success()).then_some(python)
}
