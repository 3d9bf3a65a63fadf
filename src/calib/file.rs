//! Writes small files whole or not at all: a sibling temporary file, synced and renamed. GGUF files have a writer of their own.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::ModelError;
use crate::{Error, Result};

/// Puts `bytes` under the name `path`; what was there stays until the last moment, and is only replaced with `force`.
///
/// # Errors
/// [`ModelError::OutputExists`] without `force`; what the operating system says.
pub(super) fn write(path: &Path, bytes: &[u8], force: bool) -> Result<()> {
    if !force && path.symlink_metadata().is_ok() {
        return Err(ModelError::OutputExists { path: path.to_path_buf() }.into());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary =
        tempfile::Builder::new().prefix(".tcq4-").tempfile_in(folder).map_err(Error::io(path, "create"))?;
    temporary.write_all(bytes).map_err(Error::io(path, "write"))?;
    temporary.as_file().sync_all().map_err(Error::io(path, "write"))?;
    let renamed = if force { temporary.persist(path) } else { temporary.persist_noclobber(path) };
    renamed.map_err(|e| match e.error.kind() {
        std::io::ErrorKind::AlreadyExists => ModelError::OutputExists { path: path.to_path_buf() }.into(),
        _ => Error::io(path, "rename")(e.error),
    })?;
    // The rename itself is safe once the folder is; a file system that cannot sync folders is no reason to fail.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}
