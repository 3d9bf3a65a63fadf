//! Proves that shards belong together and joins their keys. The first shard holds the keys; the others repeat some or none.

use super::header::ALIGNMENT_KEY;
use super::metadata::Metadata;
use super::source::Part;
use crate::error::{GgufError, Result};

/// The number of a shard, from 0.
pub(super) const NUMBER_KEY: &str = "split.no";
/// How many shards there are.
pub(super) const COUNT_KEY: &str = "split.count";
/// How many tensors all shards have together.
pub(super) const TENSORS_KEY: &str = "split.tensors.count";

/// Checks the sharding keys of all parts against each other and against what the parts hold.
pub(super) fn check(parts: &[Part]) -> Result<()> {
    if parts.len() < 2 {
        return Ok(());
    }
    let tensors: u64 = parts.iter().map(|part| part.header.tensors.len() as u64).sum();
    let expected_tensors = parts[0].header.metadata.get_u64(TENSORS_KEY).unwrap_or(tensors);
    for (number, part) in (0..).zip(parts) {
        expect(part, COUNT_KEY, parts.len() as u64)?;
        expect(part, NUMBER_KEY, number)?;
        if part.header.metadata.contains(TENSORS_KEY) {
            expect(part, TENSORS_KEY, expected_tensors)?;
        }
    }
    if tensors != expected_tensors {
        let what = "the number of tensors in all shards".to_owned();
        let (found, expected) = (tensors.to_string(), expected_tensors.to_string());
        return Err(parts[0].error(GgufError::ShardMixed { what, found, expected }));
    }
    check_duplicates(parts)
}

/// Checks that no tensor stands in two shards.
fn check_duplicates(parts: &[Part]) -> Result<()> {
    let mut names: Vec<(&str, usize)> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        names.extend(part.header.tensors.iter().map(|tensor| (tensor.name.as_str(), index)));
    }
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        None => Ok(()),
        Some(pair) => {
            let (name, first, second) = (pair[0].0, &parts[pair[0].1], &parts[pair[1].1]);
            Err(second.error(GgufError::ShardMixed {
                what: format!("the home of tensor `{name}`"),
                found: "this shard too".to_owned(),
                expected: format!("only {}", first.path.display()),
            }))
        }
    }
}

fn expect(part: &Part, key: &str, expected: u64) -> Result<()> {
    let found = part.header.metadata.get_u64(key);
    if found == Some(expected) {
        return Ok(());
    }
    let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
    Err(part.error(GgufError::ShardMixed { what: format!("`{key}`"), found, expected: expected.to_string() }))
}

/// Joins the keys of all parts: those of the first, without `split.*`, then what only later ones have. A key with two values is refused.
pub(super) fn metadata(parts: &mut [Part]) -> Result<Metadata> {
    let Some((first, rest)) = parts.split_first_mut() else { return Ok(Metadata::new()) };
    let mut joined = std::mem::take(&mut first.header.metadata);
    for part in rest {
        let own = &part.header.metadata;
        let theirs = |key: &&str| !key.starts_with("split.") && *key != ALIGNMENT_KEY;
        for key in own.keys().filter(theirs) {
            if joined.contains(key) && joined.payload(key) != own.payload(key) {
                let show = |metadata: &Metadata| {
                    metadata.get(key).map_or_else(String::new, |value| shorten(format!("{value:?}")))
                };
                let (found, expected) = (show(own), show(&joined));
                return Err(part.error(GgufError::ShardMixed { what: format!("`{key}`"), found, expected }));
            }
        }
        own.keys().filter(theirs).for_each(|key| joined.copy_from(own, key));
    }
    for key in [NUMBER_KEY, COUNT_KEY, TENSORS_KEY] {
        joined.remove(key);
    }
    Ok(joined)
}

/// Keeps a message short whatever the value is.
fn shorten(text: String) -> String {
    if text.chars().count() <= 80 { text } else { text.chars().take(77).chain("...".chars()).collect() }
}
