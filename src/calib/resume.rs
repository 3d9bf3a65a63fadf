//! Checkpoints of a calibration run: everything summed so far, in full precision, so that a run goes on as if it had never stopped.
//! A file of our own for this machine and this version only; what is kept for good is the statistics file.
//!
//! Layout, little endian: magic, length of the header, header (JSON), then for each entry counts, max |x|, min x, max x, Σx, Σ|x|, Σx², experts and
//! values of the sample rows, at last the XXH3 of everything before.

use std::fs;
use std::path::Path;

use bytemuck::Pod;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::collector::{Collector, Entry};

use super::stats::{ChannelStats, SampleRows};
use crate::error::ModelError;
use crate::util::atomic_file;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"TCQ4CKP2";

#[derive(Serialize, Deserialize)]
struct Header {
    /// Model, text and settings of the run.
    run: String,
    /// Chunks done.
    done: usize,
    groups: Vec<Vec<String>>,
    entries: Vec<Shape>,
}

#[derive(Serialize, Deserialize)]
struct Shape {
    weights: Vec<String>,
    matrices: usize,
    columns: usize,
    rows: usize,
}

/// Writes what `collector` has after `done` chunks of the run named `run`.
///
/// # Errors
/// If the file cannot be written.
pub fn save(path: &Path, run: &str, done: usize, collector: &Collector) -> Result<()> {
    let entries = collector.entries();
    let shapes = entries.iter().map(|entry| Shape {
        weights: entry.weights.clone(),
        matrices: entry.stats.matrices,
        columns: entry.stats.columns,
        rows: entry.rows.len(),
    });
    let header = Header { run: run.to_owned(), done, groups: collector.groups().to_vec(), entries: shapes.collect() };
    let header = serde_json::to_vec(&header).map_err(|e| Error::io(path, "write")(e.into()))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&header);
    for Entry { stats, rows, .. } in entries {
        put(&mut bytes, &stats.counts);
        put(&mut bytes, &stats.abs_max);
        put(&mut bytes, &stats.min);
        put(&mut bytes, &stats.max);
        put(&mut bytes, &stats.sum);
        put(&mut bytes, &stats.sum_abs);
        put(&mut bytes, &stats.sum_sq);
        put(&mut bytes, &rows.matrix);
        put(&mut bytes, &rows.data);
    }
    let hash = xxh3_64(&bytes);
    bytes.extend_from_slice(&hash.to_le_bytes());
    atomic_file::write(path, true, &[], &bytes)
}

/// Reads the checkpoint of the run named `run`: the collector and the chunks done.
///
/// # Errors
/// [`ModelError::Checkpoint`] if the file is damaged or of another run; what the operating system says.
pub fn load(path: &Path, run: &str, with_output: bool) -> Result<(Collector, usize)> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    let refuse = |what: &str| Error::from(ModelError::Checkpoint { path: path.to_path_buf(), what: what.into() });
    let (header, mut rest) = split(&bytes).ok_or_else(|| refuse("it is damaged"))?;
    let header: Header = serde_json::from_slice(header).map_err(|e| refuse(&e.to_string()))?;
    if header.run != run {
        return Err(refuse("it is of another model, text, or setting"));
    }
    let entries: Option<Vec<Entry>> = header.entries.iter().map(|shape| take_entry(&mut rest, shape)).collect();
    let entries = entries.filter(|_| rest.is_empty()).ok_or_else(|| refuse("it is damaged"))?;
    Ok((Collector::restore(with_output, entries, header.groups), header.done))
}

/// Header and arrays of a file whose magic, lengths and hash are right.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (body, hash) = bytes.split_last_chunk::<8>()?;
    let (magic, rest) = body.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<8>()?;
    if magic != MAGIC || u64::from_le_bytes(*hash) != xxh3_64(body) {
        return None;
    }
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)
}

fn take_entry(rest: &mut &[u8], shape: &Shape) -> Option<Entry> {
    let (matrices, columns) = (shape.matrices, shape.columns);
    let len = matrices.checked_mul(columns)?;
    let stats = ChannelStats {
        matrices,
        columns,
        counts: take(rest, matrices)?,
        abs_max: take(rest, len)?,
        min: take(rest, len)?,
        max: take(rest, len)?,
        sum: take(rest, len)?,
        sum_abs: take(rest, len)?,
        sum_sq: take(rest, len)?,
        complete: true,
        ranged: true,
        rows: None,
    };
    let matrix = take(rest, shape.rows)?;
    let data = take(rest, shape.rows.checked_mul(columns)?)?;
    Some(Entry { weights: shape.weights.clone(), stats, rows: SampleRows { columns, data, matrix } })
}

/// Appends values as they lie in memory (little endian: the machines that llama.cpp runs on).
fn put<T: Pod>(bytes: &mut Vec<u8>, values: &[T]) {
    bytes.extend_from_slice(bytemuck::cast_slice(values));
}

fn take<T: Pod>(rest: &mut &[u8], count: usize) -> Option<Vec<T>> {
    let (values, tail) = rest.split_at_checked(count.checked_mul(size_of::<T>())?)?;
    *rest = tail;
    let mut taken = vec![T::zeroed(); count];
    bytemuck::cast_slice_mut(&mut taken).copy_from_slice(values);
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collector() -> Collector {
        let mut stats = ChannelStats::new(2, 3);
        stats.counts = vec![1, 2];
        stats.sum[4] = 1.0 / 3.0;
        stats.abs_max[5] = 7.5;
        (stats.min[5], stats.max[5]) = (-7.5, 0.25);
        let rows = SampleRows { columns: 3, data: vec![1.0, 2.0, 3.0], matrix: vec![1] };
        let entry = Entry { weights: vec!["blk.0.a.weight".into(), "blk.0.b.weight".into()], stats, rows };
        Collector::restore(false, vec![entry], vec![vec!["blk.0.a.weight".into(), "blk.0.b.weight".into()]])
    }

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit_and_only_for_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.partial");
        let before = collector();
        save(&path, "run", 5, &before).unwrap();
        let (after, done) = load(&path, "run", false).unwrap();
        assert_eq!((after.entries(), after.groups(), done), (before.entries(), before.groups(), 5));
        assert!(load(&path, "other", false).unwrap_err().to_string().contains("another model"));
    }

    #[test]
    fn damage_is_found_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.partial");
        save(&path, "run", 5, &collector()).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            assert!(load(&path, "run", false).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(load(&path, "run", false).is_err(), "cut at {at}");
        }
    }
}
