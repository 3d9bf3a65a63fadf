//! What a job is known by: the content of everything that goes in. Hashes of large files are kept with what tells that a file is unchanged.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::expand::Task;
use super::spec::Calibration;
use crate::corpus::SourceSpec;
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::util::atomic_file;
use crate::util::hash::{hex, sha256_hex};
use crate::util::progress::Progress;

/// A file that changed less than this before it was hashed may change again without another time of change.
const SETTLED_NANOSECONDS: i64 = 2_000_000_000;
/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;
/// Hexadecimal digits of a key in file names.
const SHORT: usize = 16;

/// What tells whether a file is the one that was seen: nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was changed, in nanoseconds since 1970.
    pub modified: i64,
    /// Its number on its disk.
    pub inode: u64,
}

impl Stamp {
    /// That of a file; `None` if there is none.
    pub fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().filter(Metadata::is_file).map(|found| Self {
            path: path.to_path_buf(),
            bytes: found.len(),
            modified: found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec()),
            inode: found.ino(),
        })
    }

    /// Whether the file is still the one that was seen.
    pub fn holds(&self) -> bool {
        Self::of(&self.path).as_ref() == Some(self)
    }
}

/// The hash of a model or a text, with what it was taken of.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Hashed {
    stamps: Vec<Stamp>,
    /// When, in nanoseconds since 1970.
    at: i64,
    sha256: String,
}

impl Hashed {
    fn holds(&self) -> bool {
        self.stamps.iter().all(|stamp| stamp.holds() && self.at - stamp.modified > SETTLED_NANOSECONDS)
    }
}

/// Hashes of files, kept in a folder.
#[derive(Debug)]
pub struct Hashes {
    folder: PathBuf,
    /// Those of this run: what does not change under it is read once.
    seen: Mutex<BTreeMap<PathBuf, Hashed>>,
}

impl Hashes {
    /// Keeps hashes in `folder`, which exists.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, seen: Mutex::default() }
    }

    /// The SHA-256 of a model, of all its shards in order, as `tcq4.source.sha256` has it.
    ///
    /// # Errors
    /// What cannot be opened or read; an interruption.
    pub fn model(&self, path: &Path, progress: &dyn Progress) -> Result<String> {
        self.kept_or(path, || {
            let source = Source::open(path)?;
            let stamps = source.shards().filter_map(Stamp::of).collect();
            Ok((stamps, source.sha256(progress)?))
        })
    }

    /// The SHA-256 of a text.
    ///
    /// # Errors
    /// What cannot be read; an interruption.
    pub fn file(&self, path: &Path, progress: &dyn Progress) -> Result<String> {
        self.kept_or(path, || {
            let stamp = Stamp::of(path);
            Ok((stamp.into_iter().collect(), sha256_of(path, progress)?))
        })
    }

    fn kept_or(&self, path: &Path, hash: impl FnOnce() -> Result<(Vec<Stamp>, String)>) -> Result<String> {
        let absolute = std::path::absolute(path).map_err(Error::io(path, "find"))?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hashed) = seen.get(&absolute).filter(|hashed| hashed.stamps.iter().all(Stamp::holds)) {
            return Ok(hashed.sha256.clone());
        }
        let entry = self.folder.join(short(&sha256_hex(absolute.as_os_str().as_encoded_bytes())) + ".json");
        let kept = fs::read(&entry).ok().and_then(|bytes| serde_json::from_slice::<Hashed>(&bytes).ok());
        if let Some(kept) = kept.filter(|kept| !kept.stamps.is_empty() && kept.holds()) {
            let sha256 = kept.sha256.clone();
            seen.insert(absolute, kept);
            return Ok(sha256);
        }
        let at = now();
        let (stamps, sha256) = hash()?;
        let hashed = Hashed { stamps, at, sha256 };
        // Only a convenience: where it cannot be kept, the file is hashed again the next time.
        if let Ok(bytes) = serde_json::to_vec(&hashed) {
            let _ = atomic_file::write(&entry, true, &[], &bytes);
        }
        let sha256 = hashed.sha256.clone();
        seen.insert(absolute, hashed);
        Ok(sha256)
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

fn sha256_of(path: &Path, progress: &dyn Progress) -> Result<String> {
    let mut file = fs::File::open(path).map_err(Error::io(path, "open"))?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        match file.read(&mut piece).map_err(Error::io(path, "read"))? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&piece[..read]),
        }
    }
}

/// The first digits of a hash, for names of files.
pub fn short(hash: &str) -> String {
    hash[..SHORT.min(hash.len())].to_owned()
}

/// What a job is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The SHA-256 of the model.
    pub model: String,
    /// Of the calibration text and how it runs, with the program's version.
    pub calibration: String,
    /// Of everything that decides the bytes of the output.
    pub output: String,
    /// Of what decides whether the output passes.
    pub gates: String,
}

impl Key {
    /// That of a task whose model lies at `model`.
    ///
    /// # Errors
    /// What cannot be read; an interruption.
    pub fn of(task: &Task, model: &Path, hashes: &Hashes, progress: &dyn Progress) -> Result<Self> {
        let source = hashes.model(model, progress)?;
        let version = env!("CARGO_PKG_VERSION");
        let texts = task.calibration.sources.as_deref().unwrap_or_default();
        let texts = contents(texts, hashes, progress)?;
        let calibration = Calibration { sources: None, ..task.calibration.clone() };
        let calibration = json!({ "tcq4": version, "texts": texts, "settings": calibration });
        let output = json!({
            "tcq4": version, "model": source, "recipe": task.recipe, "calibration": calibration, "types": task.types
        });
        let gated = contents(task.gates.texts.as_deref().unwrap_or_default(), hashes, progress)?;
        let gates = json!({ "tcq4": version, "gates": task.gates, "texts": gated });
        let [calibration, output, gates] =
            [calibration, output, gates].map(|value| sha256_hex(value.to_string().as_bytes()));
        Ok(Self { model: source, calibration, output, gates })
    }

    /// What statistics are known by: model, text, settings, chunks.
    pub fn statistics(&self, samples: u32) -> String {
        short(&sha256_hex(format!("{} {} {samples}", self.model, self.calibration).as_bytes()))
    }
}

/// The sources with the hashes of those that are files. Data sets have names, and the catalogue their hashes.
fn contents(sources: &[String], hashes: &Hashes, progress: &dyn Progress) -> Result<Vec<(String, Option<String>)>> {
    let of = |text: &String| {
        let spec = SourceSpec::parse(text)?;
        Ok((text.clone(), spec.path().map(|path| hashes.file(path, progress)).transpose()?))
    };
    sources.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::progress::NoProgress;

    fn age(path: &Path, seconds: u64) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn hashes_are_kept_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kept) = (dir.path().join("text"), dir.path().join("kept"));
        fs::create_dir(&kept).unwrap();
        let hash = || Hashes::new(kept.clone()).file(&path, &NoProgress).unwrap();
        fs::write(&path, "abc").unwrap();
        age(&path, 60);
        assert_eq!(hash(), sha256_hex(b"abc"));
        // What is kept is believed: another hash in its place comes back.
        let entry = fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
        let other = fs::read_to_string(&entry).unwrap().replace(&sha256_hex(b"abc"), &sha256_hex(b"kept"));
        fs::write(&entry, other).unwrap();
        assert_eq!(hash(), sha256_hex(b"kept"));
        fs::write(&path, "abd").unwrap();
        assert_eq!(hash(), sha256_hex(b"abd"), "the time of change is another");
        fs::write(&path, "abe").unwrap();
        assert_eq!(hash(), sha256_hex(b"abe"), "hashed within the resolution of file times");
        fs::write(&entry, "{").unwrap();
        assert_eq!(hash(), sha256_hex(b"abe"), "damage is no harm");
        let hashes = Hashes::new(kept.clone());
        assert!(hashes.file(&dir.path().join("none"), &NoProgress).is_err());
    }
}
