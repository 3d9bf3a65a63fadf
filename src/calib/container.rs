//! Sums in the making as bytes, in full precision: the layout that checkpoints and parts of a run share. What they are of, their heads say.
//!
//! Layout, little endian: magic, length of the head, head (JSON), then for each entry counts, max |x|, min x, max x, Σx, Σ|x|, Σx² (integers of 128
//! bits), experts, turns and values of the sample rows, at last the XXH3 of everything before.

use bytemuck::Pod;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::collector::Entry;
use super::stats::SampleRows;
use super::sums::ChannelSums;

/// What stands before the arrays.
#[derive(Serialize, Deserialize)]
struct Head<H> {
    of: H,
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

/// What is kept: sums of inputs, and the groups of weights that share one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Kept {
    pub(super) entries: Vec<Entry>,
    pub(super) groups: Vec<Vec<String>>,
}

/// The bytes of a file that begins with `magic`.
///
/// # Errors
/// If the head cannot be written as JSON.
pub(super) fn encode<H: Serialize>(
    magic: [u8; 8],
    of: &H,
    entries: &[Entry],
    groups: &[Vec<String>],
) -> Result<Vec<u8>, serde_json::Error> {
    let shape = |entry: &Entry| Shape {
        weights: entry.weights.clone(),
        matrices: entry.sums.matrices,
        columns: entry.sums.columns,
        rows: entry.rows.len(),
    };
    let head = serde_json::to_vec(&Head { of, groups: groups.to_vec(), entries: entries.iter().map(shape).collect() })?;
    let mut bytes = magic.to_vec();
    bytes.extend_from_slice(&(head.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&head);
    for Entry { sums, rows, turns, .. } in entries {
        put(&mut bytes, &sums.counts);
        put(&mut bytes, &sums.abs_max);
        put(&mut bytes, &sums.min);
        put(&mut bytes, &sums.max);
        put(&mut bytes, &sums.sum);
        put(&mut bytes, &sums.sum_abs);
        put(&mut bytes, &sums.sum_sq);
        put(&mut bytes, &rows.matrix);
        put(&mut bytes, turns);
        put(&mut bytes, &rows.data);
    }
    let hash = xxh3_64(&bytes);
    bytes.extend_from_slice(&hash.to_le_bytes());
    Ok(bytes)
}

/// Reads such a file; `None` if it is damaged.
pub(super) fn decode<H: DeserializeOwned>(magic: [u8; 8], bytes: &[u8]) -> Option<(H, Kept)> {
    let (body, hash) = bytes.split_last_chunk::<8>()?;
    let (found, rest) = body.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<8>()?;
    if *found != magic || u64::from_le_bytes(*hash) != xxh3_64(body) {
        return None;
    }
    let (head, mut rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    let Head { of, groups, entries } = serde_json::from_slice(head).ok()?;
    let entries = entries.iter().map(|shape: &Shape| take_entry(&mut rest, shape)).collect::<Option<Vec<_>>>()?;
    rest.is_empty().then_some((of, Kept { entries, groups }))
}

fn take_entry(rest: &mut &[u8], shape: &Shape) -> Option<Entry> {
    let (matrices, columns) = (shape.matrices, shape.columns);
    let len = matrices.checked_mul(columns)?;
    let sums = ChannelSums {
        matrices,
        columns,
        counts: take(rest, matrices)?,
        abs_max: take(rest, len)?,
        min: take(rest, len)?,
        max: take(rest, len)?,
        sum: take(rest, len)?,
        sum_abs: take(rest, len)?,
        sum_sq: take(rest, len)?,
    };
    let (matrix, turns) = (take(rest, shape.rows)?, take(rest, shape.rows)?);
    let data = take(rest, shape.rows.checked_mul(columns)?)?;
    Some(Entry { weights: shape.weights.clone(), sums, rows: SampleRows { columns, data, matrix }, turns })
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
pub(super) mod tests {
    use super::*;

    const MAGIC: [u8; 8] = *b"TESTTEST";

    /// Two experts of three channels, read by two weights, with one sample row.
    pub(in super::super) fn kept() -> Kept {
        let mut sums = ChannelSums::new(2, 3);
        sums.counts = vec![1, 2];
        sums.sum[4].add(1.0 / 3.0);
        sums.abs_max[5] = 7.5;
        (sums.min[5], sums.max[5]) = (-7.5, 0.25);
        let rows = SampleRows { columns: 3, data: vec![1.0, 2.0, 3.0], matrix: vec![1] };
        let weights = vec!["blk.0.a.weight".to_owned(), "blk.0.b.weight".to_owned()];
        let entry = Entry { weights: weights.clone(), sums, rows, turns: vec![9] };
        Kept { entries: vec![entry], groups: vec![weights] }
    }

    #[test]
    fn sums_come_back_bit_for_bit_and_damage_is_found_wherever_it_is() {
        let kept = kept();
        let good = encode(MAGIC, &"head", &kept.entries, &kept.groups).unwrap();
        assert_eq!(decode::<String>(MAGIC, &good), Some(("head".to_owned(), kept)));
        assert_eq!(decode::<String>(*b"TESTTES2", &good), None);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert!(decode::<String>(MAGIC, &bad).is_none(), "byte {at}");
            assert!(decode::<String>(MAGIC, &good[..at]).is_none(), "cut at {at}");
        }
    }
}
