//! Names of sharded models: `NAME-00001-of-0000N.gguf`, numbered from 1, as llama.cpp writes and expects them.
//!
//! `ggus` parses such names too, but panics on shard number 0 and on versions that pass 32 bits, so it serves as an oracle in the tests only.

use std::path::{Path, PathBuf};

/// A path taken apart as the name of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardName {
    /// The path without `-00001-of-0000N.gguf`.
    pub prefix: PathBuf,
    /// The number of the shard, from 1.
    pub number: u64,
    /// How many shards there are.
    pub count: u64,
}

impl ShardName {
    /// Takes `path` apart; `None` if it does not follow the convention (five digits or more, number from 1 to the count).
    pub fn parse(path: &Path) -> Option<ShardName> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = split_number(name)?;
        let (prefix, number) = split_number(rest.strip_suffix("-of")?)?;
        let shard = ShardName { prefix: path.with_file_name(prefix), number, count };
        (!prefix.is_empty() && (1..=count).contains(&number)).then_some(shard)
    }

    /// Gives the path of shard `number` (from 1) of the same model.
    pub fn path(&self, number: u64) -> PathBuf {
        let mut path = self.prefix.clone().into_os_string();
        path.push(suffix(number, self.count));
        path.into()
    }
}

/// Gives what the name of shard `number` of `count` ends with.
pub(super) fn suffix(number: u64, count: u64) -> String {
    format!("-{number:05}-of-{count:05}.gguf")
}

/// Gives the paths of `count` shards for an output named `path`: its own name, without `.gguf` or the ending of a shard, is the prefix.
pub(super) fn output_paths(path: &Path, count: u64) -> Vec<PathBuf> {
    let prefix = match ShardName::parse(path) {
        Some(name) => name.prefix,
        None if path.extension().is_some_and(|extension| extension == "gguf") => path.with_extension(""),
        None => path.to_path_buf(),
    };
    let name = ShardName { prefix, number: 1, count };
    (1..=count).map(|number| name.path(number)).collect()
}

/// Splits `-12345` off the end of `text`.
fn split_number(text: &str) -> Option<(&str, u64)> {
    let (rest, digits) = text.rsplit_once('-')?;
    let plain = digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok().map(|number| (rest, number)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_built_again() {
        let name = ShardName::parse(Path::new("dir/model-F16-00002-of-00003.gguf")).unwrap();
        assert_eq!((name.number, name.count), (2, 3));
        assert_eq!(name.path(1), Path::new("dir/model-F16-00001-of-00003.gguf"));
        assert_eq!(name.path(2), Path::new("dir/model-F16-00002-of-00003.gguf"));
    }

    #[test]
    fn other_names_are_no_shards() {
        for name in [
            "model.gguf",
            "model-00000-of-00002.gguf",
            "model-00003-of-00002.gguf",
            "model-2-of-3.gguf",
            "-00001-of-00002.gguf",
            "model-00001-of-00002.bin",
            "model-99999999999999999999999-of-00002.gguf",
        ] {
            assert_eq!(ShardName::parse(Path::new(name)), None, "{name}");
        }
    }

    #[test]
    fn outputs_are_named_after_their_prefix() {
        let expected = vec![PathBuf::from("d/m-00001-of-00002.gguf"), PathBuf::from("d/m-00002-of-00002.gguf")];
        for path in ["d/m.gguf", "d/m", "d/m-00001-of-00009.gguf"] {
            assert_eq!(output_paths(Path::new(path), 2), expected, "{path}");
        }
    }
}
