//! Carries out a plan: writes from many threads, and lets the output appear under its name only when it is complete. It does not know what the bytes mean.
//!
//! Of a sharded output, the first shard gets its name last, and with `force` the old first shard is removed before the others are replaced: a kill in
//! between leaves a model that every reader refuses, never one mixed from two runs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::metadata::Metadata;
use super::plan::Plan;
use super::source::Source;
use super::tensor::TensorInfo;
use crate::error::{Error, GgufError, Result};
use crate::util::atomic_file::AtomicFile;

/// How many bytes are copied between two releases of the source's pages.
const COPY_CHUNK: usize = 4 << 20;

/// An output that is being written. Dropped without [`Writer::commit`], it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    plan: Plan,
    path: PathBuf,
    files: Vec<AtomicFile>,
    /// How many bytes of each tensor were written.
    written: Vec<AtomicU64>,
    force: bool,
}

impl Writer {
    /// Creates all files of `plan` under temporary names beside `path`, at their full size, with their headers.
    ///
    /// Refuses outputs that exist (without `force`), that are one of `inputs` through whatever links, or that another run is writing; a disk
    /// without enough space is found here, before any work.
    pub fn create(path: &Path, plan: &Plan, force: bool, inputs: &[&Path]) -> Result<Writer> {
        let mut files = Vec::with_capacity(plan.file_count());
        for (index, path) in plan.paths(path).iter().enumerate() {
            let file = AtomicFile::create(path, force, inputs)?;
            file.reserve(plan.file_bytes(index))?;
            file.write_at(&plan.header(index), 0)?;
            files.push(file);
        }
        let written = (0..plan.len()).map(|_| AtomicU64::new(0)).collect();
        Ok(Writer { plan: plan.clone(), path: path.to_path_buf(), files, written, force })
    }

    /// Gives the plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Gives the final paths of all files.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(AtomicFile::path)
    }

    /// Writes a part of tensor number `tensor`, at `offset` within its data; may be called from many threads. Every byte is to be written once.
    pub fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (length, planned) = (bytes.len() as u64, self.plan.tensor_bytes(tensor));
        if offset.checked_add(length).is_none_or(|end| end > planned) {
            let name = self.plan.tensors()[tensor].name.clone();
            return Err(GgufError::WriteRange { tensor: name, offset, length, bytes: planned }.at(&self.path));
        }
        self.files[self.plan.tensor_file(tensor)].write_at(bytes, self.plan.tensor_offset(tensor) + offset)?;
        self.written[tensor].fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Copies the data of a source tensor as tensor number `tensor`, byte for byte, releasing the source's pages behind.
    pub fn copy(&self, tensor: usize, source: &Source, from: &TensorInfo) -> Result<()> {
        let mut at = 0;
        for chunk in source.data(from).chunks(COPY_CHUNK) {
            self.write(tensor, at as u64, chunk)?;
            source.release(from, at..at + chunk.len());
            at += chunk.len();
        }
        Ok(())
    }

    /// Replaces the keys in the header; they must take as many bytes as the planned ones.
    pub fn set_metadata(&mut self, metadata: &Metadata) -> Result<()> {
        self.plan.set_metadata(metadata).map_err(|defect| defect.at(&self.path))?;
        self.files.first().map_or(Ok(()), |file| file.write_at(&self.plan.header(0), 0))
    }

    /// Opens what was written so far with the strict reader, to verify it before it is committed.
    pub fn reread(&self) -> Result<Source> {
        let temps: Vec<PathBuf> = self.files.iter().map(|file| file.temp_path().to_path_buf()).collect();
        Source::open_files(&temps)
    }

    /// Checks that every byte was written, waits until all are on the disk, and gives the files their names.
    pub fn commit(mut self) -> Result<()> {
        self.check_complete()?;
        self.files.iter().try_for_each(AtomicFile::sync)?;
        let rest = self.files.split_off(1.min(self.files.len()));
        if let (true, false, Some(first)) = (self.force, rest.is_empty(), self.files.first()) {
            remove_old(first.path())?;
        }
        let mut published = Vec::new();
        for file in rest.into_iter().chain(self.files.drain(..)) {
            let path = file.path().to_path_buf();
            if let Err(error) = file.publish() {
                // The first shard is not there yet, so these are of no use to anybody.
                for path in published {
                    let _ = std::fs::remove_file(path);
                }
                return Err(error);
            }
            published.push(path);
        }
        Ok(())
    }

    fn check_complete(&self) -> Result<()> {
        for (index, (tensor, written)) in self.plan.tensors().iter().zip(&self.written).enumerate() {
            let (written, planned) = (written.load(Ordering::Relaxed), self.plan.tensor_bytes(index));
            if written != planned {
                return Err(GgufError::Incomplete { tensor: tensor.name.clone(), written, planned }.at(&self.path));
            }
        }
        Ok(())
    }
}

/// Removes the first shard of an output that is being replaced.
fn remove_old(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "replace")(error)),
        _ => Ok(()),
    }
}
