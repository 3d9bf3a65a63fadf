//! `perms.json`: channel permutations by tensor name, in the only schema that exists (version 1), as llama.cpp's TCQ4 quantiser reads it.
//!
//! An object of `version`, `description`, `reorder_enabled` and `permutations`, the last one with an array of indices for each tensor:
//! `new[i] = old[perm[i]]`. That reader finds `"permutations"` by searching for the word, so this key comes last and the word appears nowhere before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::math::Permutation;
use crate::math::permutation::NotAPermutation;
use crate::util::atomic_file;
use crate::{Error, Result};

/// The schema version.
pub const VERSION: u64 = 1;

/// The description of permutations that a calibration run measured.
pub const FROM_CALIBRATION: &str = "TCQ4 channel permutations from calibration";

/// The description of permutations made from the weights alone.
pub const FROM_STRUCTURE: &str = "TCQ4 channel permutations from model structure, without calibration";

/// The content of a `perms.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PermFile {
    /// Where they come from, in words.
    pub description: String,
    /// Whether a runtime is meant to apply them.
    pub reorder_enabled: bool,
    /// By tensor name.
    pub permutations: BTreeMap<String, Permutation>,
}

impl PermFile {
    /// Permutations that are meant to be applied.
    pub fn new(description: &str, permutations: BTreeMap<String, Permutation>) -> Self {
        Self { description: description.to_owned(), reorder_enabled: true, permutations }
    }

    /// Checks every entry against the model: `columns_of` knows the columns of its tensors.
    ///
    /// # Errors
    /// [`ModelError::PermsTensor`] for the first tensor that the model lacks or that has another length; `path` is for the message.
    pub fn check(&self, path: &Path, columns_of: impl Fn(&str) -> Option<u64>) -> Result<()> {
        for (tensor, permutation) in &self.permutations {
            let what = match columns_of(tensor) {
                None => "is for a tensor that this model does not have".to_owned(),
                Some(columns) if columns != permutation.len() as u64 => {
                    format!("has {} entries, the tensor has {columns} columns", permutation.len())
                }
                Some(_) => continue,
            };
            return Err(ModelError::PermsTensor { path: path.to_path_buf(), tensor: tensor.clone(), what }.into());
        }
        Ok(())
    }
}

/// Writes `perms` to `path`, which must not exist unless `force`.
///
/// # Errors
/// If the file exists or cannot be written.
pub fn save(path: &Path, perms: &PermFile, force: bool) -> Result<()> {
    let out = Out {
        version: VERSION,
        description: &perms.description,
        reorder_enabled: perms.reorder_enabled,
        permutations: perms.permutations.iter().map(|(name, p)| (name.as_str(), p.indices())).collect(),
    };
    let mut bytes = serde_json::to_vec(&out).map_err(|e| Error::io(path, "write")(e.into()))?;
    bytes.push(b'\n');
    atomic_file::write(path, force, &[], &bytes)
}

/// Reads and checks a `perms.json`. Empty arrays stand for "no permutation" and are skipped; unknown keys are ignored.
///
/// # Errors
/// [`ModelError::Perms`] if it is not JSON of this schema and version, [`ModelError::PermsTensor`] if an array is not a bijection.
pub fn load(path: &Path) -> Result<PermFile> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let read: In = serde_json::from_reader(BufReader::new(file)).map_err(|e| {
        if e.is_io() {
            Error::io(path, "read")(e.into())
        } else {
            ModelError::Perms { path: path.to_path_buf(), what: e.to_string() }.into()
        }
    })?;
    if read.version != VERSION {
        let what = format!("its version is {}, this program knows version {VERSION}", read.version);
        return Err(ModelError::Perms { path: path.to_path_buf(), what }.into());
    }
    let mut permutations = BTreeMap::new();
    for (tensor, Indices(checked)) in read.permutations {
        let permutation = checked.map_err(|defect| ModelError::PermsTensor {
            path: path.to_path_buf(),
            tensor: tensor.clone(),
            what: format!("is not a permutation: {defect}"),
        })?;
        if !permutation.is_empty() {
            permutations.insert(tensor, permutation);
        }
    }
    Ok(PermFile { description: read.description, reorder_enabled: read.reorder_enabled, permutations })
}

#[derive(Serialize)]
struct Out<'a> {
    version: u64,
    description: &'a str,
    reorder_enabled: bool,
    permutations: BTreeMap<&'a str, &'a [u32]>,
}

#[derive(Deserialize)]
struct In {
    version: u64,
    #[serde(default)]
    description: String,
    #[serde(default = "enabled")]
    reorder_enabled: bool,
    permutations: BTreeMap<String, Indices>,
}

fn enabled() -> bool {
    true
}

/// An array that is checked as soon as it is read, so that the wide integers live only for one tensor.
struct Indices(Result<Permutation, NotAPermutation>);

impl<'de> Deserialize<'de> for Indices {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<i64>::deserialize(deserializer).map(|indices| Self(Permutation::new(&indices)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<PermFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("perms.json");
        std::fs::write(&path, text).unwrap();
        load(&path)
    }

    #[test]
    fn a_file_comes_back_and_has_the_known_shape() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("perms.json");
        let permutation = Permutation::new(&[2, 0, 1]).unwrap();
        let perms = PermFile::new(FROM_CALIBRATION, [("blk.0.attn_q.weight".to_owned(), permutation)].into());
        save(&path, &perms, false).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"version\":1,\"description\":\"TCQ4 channel permutations from calibration\",\"reorder_enabled\":true,\
             \"permutations\":{\"blk.0.attn_q.weight\":[2,0,1]}}\n"
        );
        assert_eq!(load(&path).unwrap(), perms);
        assert!(save(&path, &perms, false).unwrap_err().to_string().contains("exists already"));
        save(&path, &perms, true).unwrap();
    }

    #[test]
    fn no_description_holds_the_word_that_readers_search_for() {
        for description in [FROM_CALIBRATION, FROM_STRUCTURE] {
            assert!(!serde_json::to_string(description).unwrap().contains("\"permutations\""));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let message = |text: &str| load_text(text).unwrap_err().to_string();
        assert!(message("[]").contains("not a permutation file: "));
        assert!(message("{\"version\":2,\"permutations\":{}}").contains("its version is 2"));
        assert!(message("{\"permutations\":{}}").contains("missing field `version`"));
        assert!(
            message("{\"version\":1,\"permutations\":{\"a\":[0,0]}}")
                .contains("`a` is not a permutation: entry 1 repeats 0")
        );
        assert!(message("{\"version\":1,\"permutations\":{\"a\":[0,7]}}").contains("entry 1 is 7, outside 0..2"));
        assert!(message("{\"version\":1,\"permutations\":{\"a\":[0,1.5]}}").contains("1.5"));
        assert!(load_text("{\"version\":1,\"permutations\":{\"a\":[]}}").unwrap().permutations.is_empty());
    }

    #[test]
    fn entries_are_checked_against_the_model() {
        let perms = load_text("{\"version\":1,\"permutations\":{\"a\":[1,0]}}").unwrap();
        let check = |columns: Option<u64>| perms.check(Path::new("p"), |_| columns).map_err(|e| e.to_string());
        assert!(check(Some(2)).is_ok());
        assert!(check(Some(3)).unwrap_err().contains("has 2 entries, the tensor has 3 columns"));
        assert!(check(None).unwrap_err().contains("does not have"));
    }
}
