//! The `tcq4.*` keys of a converted file: written here, read here, described in the README.

use std::collections::BTreeMap;

use crate::error::{ConvertError, Result};
use crate::gguf::{Metadata, Source};
use crate::math::Permutation;

/// The version of the key layout below.
pub(super) const VERSION: u32 = 1;

/// `tcq4.version`: u32.
pub(super) const KEY_VERSION: &str = "tcq4.version";
/// `tcq4.reorder.enabled`: bool, as in the fork; true if any tensor is permuted.
pub(super) const KEY_REORDER: &str = "tcq4.reorder.enabled";
/// `tcq4.encoder`: string, the tile encoder.
pub(super) const KEY_ENCODER: &str = "tcq4.encoder";
/// `tcq4.recipe`: string, JSON of the settings that made the file.
pub(super) const KEY_RECIPE: &str = "tcq4.recipe";
/// `tcq4.source.sha256`: string, SHA-256 of the source file (of all shards in order); zeros in parts other than the first.
pub(super) const KEY_SOURCE: &str = "tcq4.source.sha256";

/// The key of a tensor's permutation: i32 array, one entry a column.
pub(super) fn permutation_key(tensor: &str) -> String {
    format!("tcq4.{tensor}.perm")
}

/// The key of a tensor's hash: string, see [`super::hash::tensor_sha256`].
pub(super) fn hash_key(tensor: &str) -> String {
    format!("tcq4.{tensor}.sha256")
}

/// Takes every `tcq4.*` key away.
pub(super) fn remove_own_keys(metadata: &mut Metadata) {
    let own: Vec<String> = metadata.keys().filter(|key| key.starts_with("tcq4.")).map(String::from).collect();
    for key in own {
        metadata.remove(&key);
    }
}

/// The permutations that a file carries, by tensor; each checked to be a bijection of its tensor's columns.
///
/// # Errors
/// A permutation of an unknown tensor, of the wrong length, or not a bijection.
pub fn permutations(source: &Source) -> Result<BTreeMap<String, Permutation>> {
    permutations_of(source, source)
}

/// As [`permutations`], for the tensors of `model`, of which the file may hold only some.
///
/// # Errors
/// As there.
pub(super) fn permutations_of(source: &Source, model: &Source) -> Result<BTreeMap<String, Permutation>> {
    let metadata = source.metadata();
    if metadata.get_bool(KEY_REORDER) == Some(false) {
        return Ok(BTreeMap::new());
    }
    let tensors = metadata.keys().filter_map(|key| key.strip_prefix("tcq4.")?.strip_suffix(".perm"));
    tensors.map(|tensor| Ok((tensor.to_string(), permutation(source, model, tensor)?))).collect()
}

fn permutation(source: &Source, model: &Source, tensor: &str) -> Result<Permutation> {
    let fail = |problem: String| ConvertError::Permutation {
        path: source.path().to_path_buf(),
        tensor: tensor.to_string(),
        problem,
    };
    let info = model.tensor(tensor).ok_or_else(|| fail("the file has no such tensor".into()))?;
    let indices = source
        .metadata()
        .get_i32_array(&permutation_key(tensor))
        .ok_or_else(|| fail("it is not an array of 32-bit integers".into()))?;
    if indices.len() as u64 != info.columns() {
        return Err(fail(format!("it has {} entries, the tensor {} columns", indices.len(), info.columns())).into());
    }
    let indices: Vec<i64> = indices.iter().map(|&i| i64::from(i)).collect();
    Ok(Permutation::new(&indices).map_err(|e| fail(e.to_string()))?)
}
