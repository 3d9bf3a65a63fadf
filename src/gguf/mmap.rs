//! Maps files read-only: the only unsafe code of this module.
//!
//! The contract: a mapped file must not be shortened while it is mapped. Nobody can enforce that on Unix: if another program truncates a
//! model while it is being read, the access raises SIGBUS and the process ends. That is safe for the outputs (they are still under their
//! temporary names) but not graceful. Overwriting in place would be seen as changed weights. Both are known limits; outputs of this program
//! never do either, because they are renamed into place. What can be checked is checked: the length once more after mapping.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{Error, GgufError, Result};

/// A page fault maps up to so many bytes around it (Linux's default), also pages before it that were released already.
const FAULT_AROUND: u64 = 64 << 10;

/// A file mapped read-only.
pub(super) struct Mapping {
    map: Mmap,
}

impl Mapping {
    /// Maps the regular file at `path`; refuses folders, pipes, devices and empty files.
    pub(super) fn open(path: &Path) -> Result<Mapping> {
        let gguf = |defect| Error::Gguf { path: path.to_path_buf(), defect };
        let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if kind.is_dir() {
            return Err(Error::io(path, "open")(io::ErrorKind::IsADirectory.into()));
        }
        // Asked before opening: opening a pipe would wait for its writer.
        if !kind.is_file() {
            return Err(gguf(GgufError::NotRegular));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "open"))?.len();
        if length == 0 {
            return Err(gguf(GgufError::Empty));
        }
        // SAFETY: the mapping is read-only and private to this type; see the module's contract for files that others change.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        let (mapped, now) = (map.len() as u64, file.metadata().map_err(Error::io(path, "open"))?.len());
        if mapped != now {
            return Err(gguf(GgufError::Changed { mapped, now }));
        }
        Ok(Mapping { map })
    }

    /// Gives the bytes of the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the system take the pages of `range`, and those just before it, from this process; the next access reads them again. Failures do no
    /// harm.
    pub(super) fn release(&self, range: Range<u64>) {
        let end = range.end.min(self.map.len() as u64);
        let start = range.start.saturating_sub(FAULT_AROUND);
        if range.start < end {
            // SAFETY: for a read-only mapping of a file, MADV_DONTNEED drops pages that the next access fills with the same bytes.
            let advised = unsafe {
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start as usize, (end - start) as usize)
            };
            if let Err(error) = advised {
                tracing::debug!(%error, "the system keeps the pages of a mapped file");
            }
        }
    }
}
