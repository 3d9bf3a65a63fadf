//! Where data sets lie on this machine: the data folder, and the folders where other tools leave the same files. It does not fetch anything.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::Md5;
use sha2::{Digest, Sha256};

use super::catalogue::Known;
use crate::error::CorpusError;
use crate::util::hash::hex;
use crate::{Error, Result};

/// What is added to the name of a file for the record of its hash.
const HASH_SUFFIX: &str = ".sha256";

/// How files are fetched.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// Times that a request is repeated after something that can pass (a broken connection, a busy server) without a byte having come.
    pub retries: u32,
    /// The pause before the first repetition; it doubles with each.
    pub pause: Duration,
    /// Time to connect, and time to the head of an answer.
    pub connect: Duration,
    /// Time for the body of one answer; what came until then is kept, and the rest asked for anew.
    pub body: Duration,
    /// A server that has everything under `/HOST/PATH`, asked instead of `https://HOST/PATH`.
    pub mirror: Option<String>,
    /// What stands for `https://huggingface.co`.
    pub hugging_face: Option<String>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            retries: 4,
            pause: Duration::from_secs(1),
            connect: Duration::from_secs(20),
            body: Duration::from_secs(300),
            mirror: None,
            hugging_face: None,
        }
    }
}

impl FetchOptions {
    /// The address to ask for `url`.
    pub fn address(&self, url: &str) -> String {
        let path = url.strip_prefix("https://").unwrap_or(url);
        match (&self.mirror, &self.hugging_face, path.strip_prefix("huggingface.co")) {
            (Some(mirror), ..) => format!("{}/{path}", mirror.trim_end_matches('/')),
            (None, Some(other), Some(rest)) => format!("{}{rest}", other.trim_end_matches('/')),
            _ => url.to_owned(),
        }
    }
}

/// The data folder, other folders to look into, and whether anything may be fetched.
#[derive(Debug, Clone)]
pub struct Store {
    /// The data folder; made when something is fetched.
    pub folder: PathBuf,
    /// Hugging Face's cache of repositories, if there is one.
    pub hub: Option<PathBuf>,
    /// Fetch nothing.
    pub offline: bool,
    /// How to fetch.
    pub fetch: FetchOptions,
}

impl Store {
    /// A store in `folder` that looks nowhere else.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), hub: None, offline: false, fetch: FetchOptions::default() }
    }

    /// The place of a file in the data folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Finds a file that lies in the data folder, or under the address `urls` in Hugging Face's cache.
    ///
    /// # Errors
    /// [`CorpusError::Checksum`] if the one in the data folder has other bytes than it should. Files elsewhere that differ are passed over.
    pub fn find(&self, file: &str, known: Known, urls: &[&str]) -> Result<Option<PathBuf>> {
        let own = self.path(file);
        if own.is_file() {
            check(&own, known)?;
            check_recorded(&own)?;
            return Ok(Some(own));
        }
        let elsewhere = self.in_hub(urls);
        Ok(elsewhere.into_iter().find(|path| check(path, known).is_ok()))
    }

    /// The files of Hugging Face's cache that an address of a data set repository leads to, in any revision.
    fn in_hub(&self, urls: &[&str]) -> Vec<PathBuf> {
        let Some(hub) = &self.hub else { return Vec::new() };
        let mut found = Vec::new();
        for url in urls {
            let Some(path) = url.strip_prefix("https://huggingface.co/datasets/") else { continue };
            let parts: Vec<&str> = path.splitn(5, '/').collect();
            let [owner, name, "resolve", _, file] = parts[..] else { continue };
            let Ok(snapshots) = fs::read_dir(hub.join(format!("datasets--{owner}--{name}/snapshots"))) else {
                continue;
            };
            found.extend(snapshots.flatten().map(|entry| entry.path().join(file)).filter(|path| path.is_file()));
        }
        found.sort();
        found.dedup();
        found
    }
}

/// Checks the bytes of a file against what is known of them.
///
/// # Errors
/// [`CorpusError::Checksum`], and what the operating system says.
pub fn check(path: &Path, known: Known) -> Result<()> {
    match known {
        Known::Sha256(_, expected) => compare(path, "SHA-256", expected, &hash::<Sha256>(path)?),
        Known::Md5(expected) => compare(path, "MD5", expected, &hash::<Md5>(path)?),
        Known::Nothing => Ok(()),
    }
}

/// Keeps the hash of a file whose right one is not known, so that a later change is noticed.
///
/// # Errors
/// What the operating system says.
pub fn record(path: &Path) -> Result<()> {
    let record = record_path(path);
    fs::write(&record, hash::<Sha256>(path)? + "\n").map_err(Error::io(&record, "write"))
}

fn check_recorded(path: &Path) -> Result<()> {
    match fs::read_to_string(record_path(path)) {
        Ok(recorded) => compare(path, "SHA-256", recorded.trim(), &hash::<Sha256>(path)?),
        Err(_) => Ok(()),
    }
}

fn record_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(HASH_SUFFIX);
    name.into()
}

fn compare(path: &Path, algorithm: &'static str, expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.to_owned(), found.to_owned());
    Err(CorpusError::Checksum { path: path.to_path_buf(), algorithm, expected, found }.into())
}

fn hash<D: Digest>(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "read"))?;
    let (mut digest, mut buffer) = (D::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(Error::io(path, "read"))? {
            0 => return Ok(hex(&digest.finalize())),
            read => digest.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_to_a_mirror() {
        let plain = FetchOptions::default();
        let hub = FetchOptions { hugging_face: Some("https://hub.example/".into()), ..FetchOptions::default() };
        let mirror = FetchOptions { mirror: Some("http://10.0.0.1:80/m/".into()), ..hub.clone() };
        let url = "https://huggingface.co/datasets/a/b";
        assert_eq!(plain.address(url), url);
        assert_eq!(hub.address(url), "https://hub.example/datasets/a/b");
        assert_eq!(hub.address("https://example.org/x"), "https://example.org/x");
        assert_eq!(mirror.address(url), "http://10.0.0.1:80/m/huggingface.co/datasets/a/b");
    }

    #[test]
    fn files_are_found_in_the_folder_and_in_the_hub_cache() {
        let dir = tempfile::tempdir().unwrap();
        let hub = dir.path().join("hub");
        let snapshot = hub.join("datasets--o--n/snapshots/0123/en");
        fs::create_dir_all(&snapshot).unwrap();
        let store = Store { hub: Some(hub), ..Store::new(dir.path().join("data")) };
        let urls = ["https://huggingface.co/datasets/o/n/resolve/main/en/x.gz"];
        assert_eq!(store.find("x.gz", Known::Nothing, &urls).unwrap(), None);
        fs::write(snapshot.join("x.gz"), "abc").unwrap();
        assert_eq!(store.find("x.gz", Known::Nothing, &urls).unwrap(), Some(snapshot.join("x.gz")));
        let other = Known::Md5("00000000000000000000000000000000");
        assert_eq!(store.find("x.gz", other, &urls).unwrap(), None);
        // RFC 1321, appendix A.5.
        let right = Known::Md5("900150983cd24fb0d6963f7d28e17f72");
        assert!(store.find("x.gz", right, &urls).unwrap().is_some());
        fs::create_dir_all(&store.folder).unwrap();
        fs::write(store.path("x.gz"), "abd").unwrap();
        assert!(matches!(store.find("x.gz", right, &urls), Err(Error::Corpus(CorpusError::Checksum { .. }))));
    }

    #[test]
    fn a_recorded_hash_notices_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        fs::write(store.path("a"), "one").unwrap();
        record(&store.path("a")).unwrap();
        assert!(store.find("a", Known::Nothing, &[]).unwrap().is_some());
        fs::write(store.path("a"), "two").unwrap();
        assert!(store.find("a", Known::Nothing, &[]).is_err());
    }
}
