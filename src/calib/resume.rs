//! Checkpoints of a calibration run: everything summed so far, in full precision, so that a run goes on as if it had never stopped.
//! A file of our own for this machine and this version only; what is kept for good is the statistics file.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::collector::Collector;
use super::container::{Kept, decode, encode};
use crate::error::ModelError;
use crate::util::atomic_file;
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"TCQ4CKP3";

#[derive(Serialize, Deserialize)]
struct State {
    /// Model, text and settings of the run.
    run: String,
    /// Steps done.
    done: usize,
}

/// Writes what `collector` has after `done` steps of the run named `run`.
///
/// # Errors
/// If the file cannot be written.
pub fn save(path: &Path, run: &str, done: usize, collector: &Collector) -> Result<()> {
    let state = State { run: run.to_owned(), done };
    let bytes = encode(MAGIC, &state, collector.entries(), collector.groups());
    let bytes = bytes.map_err(|e| Error::io(path, "write")(e.into()))?;
    atomic_file::write(path, true, &[], &bytes)
}

/// Reads the checkpoint of the run named `run`: the collector and the steps done.
///
/// # Errors
/// [`ModelError::Checkpoint`] if the file is damaged or of another run; what the operating system says.
pub fn load(path: &Path, run: &str, with_output: bool) -> Result<(Collector, usize)> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    let refuse = |what: &str| Error::from(ModelError::Checkpoint { path: path.to_path_buf(), what: what.into() });
    let (state, Kept { entries, groups }) = decode::<State>(MAGIC, &bytes).ok_or_else(|| refuse("it is damaged"))?;
    if state.run != run {
        return Err(refuse("it is of another model, text, or setting"));
    }
    Ok((Collector::restore(with_output, entries, groups), state.done))
}

#[cfg(test)]
mod tests {
    use super::super::container::tests::kept;
    use super::*;

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit_and_only_for_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.partial");
        let Kept { entries, groups } = kept();
        let before = Collector::restore(false, entries, groups);
        save(&path, "run", 5, &before).unwrap();
        let (after, done) = load(&path, "run", false).unwrap();
        assert_eq!((after.entries(), after.groups(), done), (before.entries(), before.groups(), 5));
        assert!(load(&path, "other", false).unwrap_err().to_string().contains("another model"));
        fs::write(&path, &fs::read(&path).unwrap()[1..]).unwrap();
        assert!(load(&path, "run", false).unwrap_err().to_string().contains("damaged"));
    }
}
