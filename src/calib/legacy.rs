//! Reads llama-imatrix's old `.dat` files. They are never written, and hold no more than `E[x²]` and a count of chunks.
//!
//! Layout, little endian: i32 entries; for each i32 length and bytes of the name, i32 calls, i32 values, f32 values (`E[x²]` times calls);
//! then, in younger files, i32 chunks, i32 length and bytes of the data set's name.

use std::collections::BTreeMap;
use std::path::Path;

use super::stats::{ChannelStats, Statistics};
use crate::error::ModelError;

/// Tokens that stand for a call: the file does not say, this is llama.cpp's default.
const CHUNK_SIZE: u32 = 512;

/// The longest tensor name of ggml.
const MAX_NAME: usize = 63;

/// Reads the bytes of a `.dat` file; `path` is for messages.
///
/// # Errors
/// [`ModelError::Statistics`] if a length does not fit, a value is not finite or negative, or something is left over.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Statistics, ModelError> {
    let mut rest = bytes;
    parse(&mut rest).map_err(|what| ModelError::Statistics {
        path: path.to_path_buf(),
        what: format!("{what} (byte {} of {})", bytes.len() - rest.len(), bytes.len()),
    })
}

fn parse(rest: &mut &[u8]) -> Result<Statistics, String> {
    let count = number(rest, "the number of entries")?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let (name, stats) = entry(rest)?;
        if entries.insert(name.clone(), stats).is_some() {
            return Err(format!("`{name}` comes twice"));
        }
    }
    let (mut chunk_count, mut datasets) = (0, Vec::new());
    if !rest.is_empty() {
        chunk_count = number(rest, "the number of chunks")? as u32;
        let len = number(rest, "the length of the data set's name")?;
        datasets.push(text(rest, len, "the data set's name")?);
    }
    if entries.is_empty() {
        return Err("it has no entries".into());
    }
    if !rest.is_empty() {
        return Err("something is left over".into());
    }
    Ok(Statistics { entries, chunk_count, chunk_size: CHUNK_SIZE, datasets, ..Statistics::default() })
}

fn entry(rest: &mut &[u8]) -> Result<(String, ChannelStats), String> {
    let len = number(rest, "the length of a name")?;
    if len == 0 || len > MAX_NAME {
        return Err(format!("a name of {len} bytes"));
    }
    let name = text(rest, len, "a name")?;
    let calls = number(rest, "a number of calls")?;
    let columns = number(rest, "a number of values")?;
    if calls == 0 || columns == 0 {
        return Err(format!("`{name}` has {columns} values of {calls} calls"));
    }
    let values = take(rest, columns.checked_mul(4).ok_or("a number of values is too large")?, "values")?;
    let scale = f64::from(CHUNK_SIZE);
    let sums: Vec<f64> =
        values.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])) * scale).collect();
    if !sums.iter().all(|sum| sum.is_finite() && *sum >= 0.0) {
        return Err(format!("`{name}` has values that are no mean squares"));
    }
    let counts = vec![calls as u64 * u64::from(CHUNK_SIZE)];
    Ok((name, ChannelStats { counts, sum_sq: sums, complete: false, ranged: false, ..ChannelStats::new(1, columns) }))
}

fn take<'a>(rest: &mut &'a [u8], len: usize, what: &str) -> Result<&'a [u8], String> {
    let (taken, tail) = rest.split_at_checked(len).ok_or_else(|| format!("the file ends inside {what}"))?;
    *rest = tail;
    Ok(taken)
}

fn number(rest: &mut &[u8], what: &str) -> Result<usize, String> {
    let bytes = take(rest, 4, what)?;
    let value = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    usize::try_from(value).map_err(|_| format!("{what} is {value}"))
}

fn text(rest: &mut &[u8], len: usize, what: &str) -> Result<String, String> {
    let bytes = take(rest, len, what)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| format!("{what} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        let int = |bytes: &mut Vec<u8>, value: i32| bytes.extend(value.to_le_bytes());
        int(&mut bytes, 1);
        int(&mut bytes, 20);
        bytes.extend(b"blk.0.ffn_up.weight\xc2"[..19].iter().chain(b"x"));
        int(&mut bytes, 4);
        int(&mut bytes, 2);
        bytes.extend([8.0f32, 2.0].map(f32::to_le_bytes).concat());
        int(&mut bytes, 4);
        int(&mut bytes, 3);
        bytes.extend(b"c.t");
        bytes
    }

    #[test]
    fn mean_squares_come_back() {
        let stats = read(Path::new("x"), &file()).unwrap();
        let entry = &stats.entries["blk.0.ffn_up.weightx"];
        assert_eq!([entry.mean_sq(0), entry.mean_sq(1)], [2.0, 0.5]);
        assert_eq!((stats.chunk_count, stats.datasets.as_slice(), entry.complete), (4, &["c.t".to_owned()][..], false));
    }

    #[test]
    fn every_cut_and_every_huge_length_is_refused() {
        let good = file();
        let end_of_entries = good.len() - 11;
        for cut in (0..good.len()).filter(|&cut| cut != end_of_entries) {
            assert!(read(Path::new("x"), &good[..cut]).is_err(), "cut at {cut}");
        }
        for at in [0, 4, 28, 32, good.len() - 11, good.len() - 7] {
            for value in [-1, i32::MAX] {
                let mut bad = good.clone();
                bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
                let fine = value > 0 && [28, good.len() - 11].contains(&at);
                assert_eq!(read(Path::new("x"), &bad).is_ok(), fine, "{value} at {at}");
            }
        }
    }
}
