//! Keeps compiled images in a folder. What cannot be kept is compiled again: the cache fails silently, and gives back only what was put in.

use std::fs;
use std::path::PathBuf;

use crate::util::atomic_file;
use crate::util::hash::sha256_hex;

/// Hexadecimal digits of the hash that an entry begins with.
const HASH: usize = 64;

/// A folder of images, or none.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key}.image")))
    }

    /// Gives an entry that is whole.
    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut entry = fs::read(self.path(key)?).ok()?;
        let (hash, bytes) = entry.split_at_checked(HASH)?;
        if hash != sha256_hex(bytes).as_bytes() {
            return None;
        }
        Some(entry.split_off(HASH))
    }

    /// Keeps an entry. Two runs that do it at once do not disturb each other: the file appears whole or not at all.
    pub(super) fn put(&self, key: &str, bytes: &[u8]) {
        let Some((path, folder)) = self.path(key).zip(self.folder.as_ref()) else { return };
        let entry = [sha256_hex(bytes).as_bytes(), bytes].concat();
        let kept = fs::create_dir_all(folder).is_ok() && atomic_file::write(&path, true, &[], &entry).is_ok();
        if !kept {
            tracing::debug!("{}: the compiled kernels are not kept", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(folder.path().join("made/when/needed")));
        assert_eq!(cache.get("a"), None);
        cache.put("a", b"image");
        assert_eq!(cache.get("a").as_deref(), Some(&b"image"[..]));
        assert_eq!(cache.get("b"), None);
    }

    #[test]
    fn an_entry_that_was_damaged_is_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(folder.path().into()));
        cache.put("a", b"image");
        let path = cache.path("a").unwrap();
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..10], b"", &[&whole[..], b"x"].concat()] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get("a"), None);
        }
        cache.put("a", b"image");
        assert!(cache.get("a").is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cache = Cache::new(Some(file.path().join("below a file")));
        cache.put("a", b"image");
        assert_eq!(cache.get("a"), None);
        Cache::new(None).put("a", b"image");
    }
}
