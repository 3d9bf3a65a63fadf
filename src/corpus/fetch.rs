//! Brings a data set's file onto this machine, once: finds it, or fetches it under a lock, checks it, and gives it its name in one step.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;
use serde_json::json;

use super::cache::{Store, check, record};
use super::catalogue::{Archive, Known, Origin, Part};
use super::http;
use super::read::json_lines;
use super::rules::{Rule, Sizes};
use crate::error::CorpusError;
use crate::util::progress::{Progress, Unit};
use crate::{Error, Result};

/// How often a lock is tried again while another run holds it.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// What is to be fetched: for messages and for the network code.
pub(super) struct Wanted<'a> {
    /// The data set and its part.
    pub(super) name: &'a str,
    pub(super) urls: &'a [&'a str],
    /// Where it belongs.
    pub(super) path: PathBuf,
    pub(super) known: Known,
    /// Bytes at most.
    #[cfg_attr(not(feature = "download"), expect(dead_code, reason = "only the network code asks"))]
    pub(super) limit: u64,
}

/// Gives the path of a part's file, which is fetched if it is not there. `rule` matters only for what is taken from the head of a stream.
///
/// # Errors
/// [`CorpusError`]: offline with nothing there, what the network says, wrong bytes.
pub(super) fn obtain(
    store: &Store,
    name: &str,
    part: &Part,
    rule: Rule,
    sizes: &Sizes,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    match part.origin {
        Origin::File { urls, limit } => {
            let wanted = Wanted { name, urls, path: store.path(part.file), known: part.known, limit };
            file(store, part.file, &wanted, progress)
        }
        Origin::Zip { archive, member } => zip_member(store, name, part, archive, member, progress),
        Origin::Stream { urls } => stream(store, name, part, urls, rule, sizes, progress),
    }
}

/// Whether a part's file is here. For a stream: the whole file, or any sample of it.
pub(super) fn present(store: &Store, part: &Part) -> Option<PathBuf> {
    let urls = part.origin.urls();
    let own = store.path(part.file);
    match part.origin {
        Origin::File { .. } => store.find(part.file, part.known, urls).ok().flatten(),
        Origin::Zip { archive, .. } => store
            .find(part.file, part.known, &[])
            .ok()
            .flatten()
            .or_else(|| store.find(archive.file, archive.known, urls).ok().flatten()),
        Origin::Stream { .. } => store.find(part.file, part.known, urls).ok().flatten().or_else(|| {
            let stem = stream_stem(&own)?;
            let mut samples: Vec<PathBuf> = fs::read_dir(own.parent()?).ok()?.flatten().map(|e| e.path()).collect();
            samples.retain(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&stem) && name.ends_with(".jsonl")
            });
            samples.into_iter().min()
        }),
    }
}

fn file(store: &Store, file: &str, wanted: &Wanted, progress: &dyn Progress) -> Result<PathBuf> {
    if let Some(path) = store.find(file, wanted.known, wanted.urls)? {
        return Ok(path);
    }
    may_fetch(store, wanted.name, wanted.urls, &wanted.path)?;
    let _lock = lock(&wanted.path, progress)?;
    if let Some(path) = store.find(file, wanted.known, &[])? {
        return Ok(path); // another run fetched it while this one waited
    }
    http::download(wanted, &store.fetch, progress)?;
    if wanted.known == Known::Nothing {
        record(&wanted.path)?;
    }
    Ok(wanted.path.clone())
}

fn zip_member(
    store: &Store,
    name: &str,
    part: &Part,
    archive: &Archive,
    member: &str,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    if let Some(path) = store.find(part.file, part.known, &[])? {
        return Ok(path);
    }
    let limit = match archive.known {
        Known::Sha256(bytes, _) => bytes,
        _ => 1 << 30,
    };
    let path = store.path(part.file);
    let wanted = Wanted { name, urls: archive.urls, path: store.path(archive.file), known: archive.known, limit };
    if store.find(archive.file, archive.known, archive.urls)?.is_none() {
        may_fetch(store, name, archive.urls, &wanted.path)?;
    }
    let zipped = file(store, archive.file, &wanted, progress)?;
    let _lock = lock(&path, progress)?;
    if !path.is_file() {
        let limit = match part.known {
            Known::Sha256(bytes, _) => bytes,
            _ => super::read::MAX_TEXT,
        };
        publish(&path, |output| unzip(&zipped, member, limit, output), part.known)?;
    }
    Ok(path)
}

fn unzip(archive: &Path, member: &str, limit: u64, output: &mut File) -> Result<()> {
    let damaged = |what: String| Error::from(CorpusError::Compressed { path: archive.to_path_buf(), what });
    let file = File::open(archive).map_err(Error::io(archive, "read"))?;
    let mut zip = zip::ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(e.to_string()))?;
    let member = zip.by_name(member).map_err(|e| damaged(format!("{member}: {e}")))?;
    let copied = io::copy(&mut member.take(limit + 1), output).map_err(|e| damaged(e.to_string()))?;
    if copied > limit {
        return Err(CorpusError::TooLarge { name: archive.display().to_string(), limit }.into());
    }
    Ok(())
}

fn stream(
    store: &Store,
    name: &str,
    part: &Part,
    urls: &[&str],
    rule: Rule,
    sizes: &Sizes,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    if let Some(path) = store.find(part.file, part.known, urls)? {
        return Ok(path);
    }
    let whole = store.path(part.file);
    let stem = stream_stem(&whole).unwrap_or_default();
    let folder = Path::new(part.file).parent().unwrap_or(Path::new(""));
    let sample = folder.join(format!("{stem}{}.jsonl", rule.tag(sizes))).display().to_string();
    if let Some(path) = store.find(&sample, Known::Nothing, &[])? {
        return Ok(path);
    }
    may_fetch(store, name, urls, &whole)?;
    let path = store.path(&sample);
    let _lock = lock(&path, progress)?;
    if path.is_file() {
        return Ok(path);
    }
    let wanted = Wanted { name, urls, path: whole, known: Known::Nothing, limit: u64::MAX };
    http::with_retries(&wanted, &store.fetch, progress, |body| {
        publish(&path, |output| head_of_stream(body, &wanted.path, output, rule, sizes, progress), Known::Nothing)
    })?;
    record(&path)?;
    Ok(path)
}

/// The name of a stream's file without its extensions, with a full stop.
fn stream_stem(whole: &Path) -> Option<String> {
    let name = whole.file_name()?.to_str()?;
    Some(format!("{}.", name.strip_suffix(".json.gz").unwrap_or(name)))
}

/// Writes the first wanted samples of a gzip stream of JSON lines; `name` is for messages.
fn head_of_stream(
    body: &mut dyn Read,
    name: &Path,
    output: &mut File,
    rule: Rule,
    sizes: &Sizes,
    progress: &dyn Progress,
) -> Result<()> {
    let enough = rule.enough(sizes);
    let (mut taken, mut failed) = (0, Ok(()));
    let mut output = BufWriter::new(output);
    let mut lines = BufReader::new(MultiGzDecoder::new(BufReader::new(body)));
    progress.begin("fetch", enough as u64, Unit::Items);
    json_lines(name, &mut lines, None, &mut |sample| {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        if rule.wants(&sample.text, sizes) {
            failed = writeln!(output, "{}", json!({ "text": sample.text }));
            taken += 1;
            progress.advance(1);
        }
        Ok(if taken >= enough || failed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    progress.end();
    failed.and_then(|()| output.flush()).map_err(Error::io(name, "keep the head of"))
}

/// Writes a file beside `path` and gives it that name once it is complete and right.
fn publish(path: &Path, write: impl FnOnce(&mut File) -> Result<()>, known: Known) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(path, "create"))?;
    write(temporary.as_file_mut())?;
    temporary.as_file().sync_all().map_err(Error::io(path, "flush to the disk"))?;
    check(temporary.path(), known).map_err(|error| at_final_path(error, path))?;
    let file = temporary.persist(path).map_err(|e| Error::io(path, "rename the finished file to")(e.error))?;
    allow_reading(&file);
    Ok(())
}

/// Temporary files are private; data sets in a shared folder are not.
fn allow_reading(file: &File) {
    use std::os::unix::fs::PermissionsExt;
    let _ = file.set_permissions(fs::Permissions::from_mode(0o644));
}

/// Names the file that the user knows instead of the temporary one.
pub(super) fn at_final_path(error: Error, path: &Path) -> Error {
    match error {
        Error::Corpus(CorpusError::Checksum { algorithm, expected, found, .. }) => {
            CorpusError::Checksum { path: path.to_path_buf(), algorithm, expected, found }.into()
        }
        other => other,
    }
}

fn may_fetch(store: &Store, name: &str, urls: &[&str], path: &Path) -> Result<()> {
    let why = match (store.offline, http::BUILT_IN) {
        (true, _) => "offline work was asked for",
        (false, false) => "this build has no network code",
        (false, true) => return Ok(()),
    };
    let url = urls.first().copied().unwrap_or_default().to_owned();
    Err(CorpusError::NotCached { name: name.to_owned(), why, url, path: path.to_path_buf() }.into())
}

/// Keeps two runs from fetching one file at once: the second waits for the first. The lock lies in a file of its own beside `path`.
fn lock(path: &Path, progress: &dyn Progress) -> Result<File> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io(folder, "create the data folder"))?;
    let lock = http::beside(path, ".lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(&lock).map_err(Error::io(&lock, "create"))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(Error::io(&lock, "lock")(error)),
            Err(TryLockError::WouldBlock) if progress.interrupted() => return Err(Error::Interrupted),
            Err(TryLockError::WouldBlock) => {}
        }
        if !told {
            progress.note(&format!("another run is fetching {}: waiting for it", path.display()));
            told = true;
        }
        sleep(LOCK_PAUSE);
    }
}
