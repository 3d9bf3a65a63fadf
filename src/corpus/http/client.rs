//! Fetches over HTTP: resumes what was cut off, repeats what can pass, and refuses what is too long or wrong. Redirects and proxies
//! (`HTTPS_PROXY`, `NO_PROXY`) are the client library's business.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use super::beside;
use crate::corpus::cache::{FetchOptions, check};
use crate::corpus::catalogue::Known;
use crate::corpus::fetch::{Wanted, at_final_path};
use crate::error::CorpusError;
use crate::util::progress::{Progress, Unit};
use crate::{Error, Result};

/// The longest pause between two requests.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How finely pauses are cut, so that an interruption is noticed.
const PAUSE_STEP: Duration = Duration::from_millis(100);

/// Why a request did not bring what was wanted.
enum Failure {
    /// It may go better next time. `came` says whether some bytes came.
    Passing { what: String, came: bool },
    /// This address does not have it.
    Status(u16),
    /// Nothing helps.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Final(error)
    }
}

/// What is known about the beginning of a file that lies here already.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    url: String,
    /// The strong entity tag of the version that it is the beginning of.
    etag: Option<String>,
}

/// Fetches a file to its final name.
///
/// # Errors
/// [`CorpusError::Status`], [`CorpusError::Transport`], [`CorpusError::TooLarge`], [`CorpusError::Checksum`]; what the disk says.
pub(in crate::corpus) fn download(wanted: &Wanted, options: &FetchOptions, progress: &dyn Progress) -> Result<()> {
    let transfer = Transfer {
        wanted,
        partial: beside(&wanted.path, ".partial"),
        state: beside(&wanted.path, ".partial.json"),
        agent: agent(options),
        progress,
    };
    let resumed = transfer.have() > 0;
    repeat(wanted, options, progress, |url| transfer.attempt(url))?;
    let right = check(&transfer.partial, wanted.known);
    if right.is_err() {
        transfer.forget()?;
    }
    if right.is_err() && resumed {
        repeat(wanted, options, progress, |url| transfer.attempt(url))?;
        check(&transfer.partial, wanted.known).inspect_err(|_| drop(transfer.forget()))
    } else {
        right
    }
    .map_err(|error| at_final_path(error, &wanted.path))?;
    fs::rename(&transfer.partial, &wanted.path).map_err(Error::io(&wanted.path, "rename the finished file to"))?;
    transfer.forget()
}

/// Opens the body of the first address that answers and passes it to `take`; again from the beginning if the connection breaks.
///
/// # Errors
/// As [`download`], and what `take` refuses.
pub(in crate::corpus) fn with_retries(
    wanted: &Wanted,
    options: &FetchOptions,
    progress: &dyn Progress,
    mut take: impl FnMut(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    let agent = agent(options);
    repeat(wanted, options, progress, |url| {
        let response = answer(&agent, url, None)?;
        match response.status().as_u16() {
            200 => take(&mut response.into_body().into_reader()).map_err(|error| match error {
                Error::Io { source, .. } if is_network(source.kind()) => {
                    Failure::Passing { what: source.to_string(), came: false }
                }
                Error::Corpus(CorpusError::Compressed { what, .. }) => Failure::Passing { what, came: false },
                other => Failure::Final(other),
            }),
            status => Err(refused(status)),
        }
    })
}

/// Whether an error comes from the connection rather than from the disk.
fn is_network(kind: ErrorKind) -> bool {
    use ErrorKind as K;
    matches!(
        kind,
        K::ConnectionReset
            | K::ConnectionAborted
            | K::BrokenPipe
            | K::UnexpectedEof
            | K::TimedOut
            | K::WouldBlock
            | K::Other
    )
}

fn agent(options: &FetchOptions) -> Agent {
    let config = Agent::config_builder()
        .timeout_connect(Some(options.connect))
        .timeout_recv_response(Some(options.connect))
        .timeout_recv_body(Some(options.body))
        .http_status_as_error(false)
        .user_agent(concat!("tcq4/", env!("CARGO_PKG_VERSION")))
        .build();
    Agent::new_with_config(config)
}

/// Tries the addresses one after the other, each as often as it makes sense.
fn repeat(
    wanted: &Wanted,
    options: &FetchOptions,
    progress: &dyn Progress,
    mut attempt: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<()> {
    let mut last = None;
    for url in wanted.urls {
        let url = options.address(url);
        let mut failures = 0;
        let passed = loop {
            if progress.interrupted() {
                return Err(Error::Interrupted);
            }
            match attempt(&url) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Status(status)) => {
                    break CorpusError::Status { url, status, path: wanted.path.clone() };
                }
                Err(Failure::Passing { what, came }) => {
                    failures = if came { 1 } else { failures + 1 };
                    if failures > options.retries {
                        break CorpusError::Transport { url, what, path: wanted.path.clone() };
                    }
                    tracing::info!("{url}: {what}; trying again");
                }
            }
            pause(options.pause.saturating_mul(1 << (failures - 1).min(16)).min(MAX_PAUSE), progress);
        };
        last = Some(passed);
    }
    let path = wanted.path.clone();
    Err(last.unwrap_or(CorpusError::Transport { url: wanted.name.to_owned(), what: "no address".into(), path }).into())
}

fn pause(time: Duration, progress: &dyn Progress) {
    let started = Instant::now();
    while started.elapsed() < time && !progress.interrupted() {
        sleep(PAUSE_STEP.min(time.saturating_sub(started.elapsed())));
    }
}

fn answer(agent: &Agent, url: &str, range: Option<(u64, Option<&str>)>) -> Result<Response<Body>, Failure> {
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if let Some((from, etag)) = range {
        request = request.header("Range", format!("bytes={from}-"));
        if let Some(etag) = etag {
            request = request.header("If-Range", etag);
        }
    }
    request.call().map_err(|error| match error {
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => {
            Failure::Passing { what: error.to_string(), came: false }
        }
        // A name that does not resolve, a bad certificate, a redirect without end: the same again a second later.
        other => Failure::Final(
            CorpusError::Transport { url: url.to_owned(), what: other.to_string(), path: PathBuf::new() }.into(),
        ),
    })
}

/// What a status other than success means.
fn refused(status: u16) -> Failure {
    match status {
        408 | 425 | 429 | 500..=599 => Failure::Passing { what: format!("the server answered {status}"), came: false },
        _ => Failure::Status(status),
    }
}

/// One file on its way here.
struct Transfer<'a> {
    wanted: &'a Wanted<'a>,
    partial: PathBuf,
    state: PathBuf,
    agent: Agent,
    progress: &'a dyn Progress,
}

impl Transfer<'_> {
    /// Bytes that are here.
    fn have(&self) -> u64 {
        fs::metadata(&self.partial).map_or(0, |file| file.len())
    }

    /// Removes what is here.
    fn forget(&self) -> Result<()> {
        for path in [&self.partial, &self.state] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io(path, "remove")(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the bytes that are here can be continued, and by which entity tag. Where the right hash is known, a file that changed in the
    /// meantime would be noticed in the end; otherwise only the tag can tell.
    fn resumable(&self, url: &str) -> Option<(u64, Option<String>)> {
        let have = self.have();
        let state: State = serde_json::from_slice(&fs::read(&self.state).ok()?).ok()?;
        let sure = state.etag.is_some() || self.wanted.known != Known::Nothing;
        (have > 0 && state.url == url && sure).then_some((have, state.etag))
    }

    fn attempt(&self, url: &str) -> Result<(), Failure> {
        let resume = self.resumable(url);
        let range = resume.as_ref().map(|(from, etag)| (*from, etag.as_deref()));
        let response = answer(&self.agent, url, range).map_err(|failure| self.located(failure))?;
        let (from, total) = match (response.status().as_u16(), &resume) {
            (200, _) => (0, number(response.headers(), "content-length")),
            (206, Some((have, _))) => match content_range(response.headers()) {
                Some((first, total)) if first == *have => (first, total),
                _ => return self.start_over("the server sent another range than it was asked for"),
            },
            (416, Some(_)) => return self.start_over("the server has no such range"),
            (status, _) => return Err(refused(status)),
        };
        self.too_large(total)?;
        self.receive(url, response, from, total)
    }

    /// Puts the path into a failure that was made without it.
    fn located(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Final(Error::Corpus(CorpusError::Transport { url, what, .. })) => {
                Failure::Final(CorpusError::Transport { url, what, path: self.wanted.path.clone() }.into())
            }
            other => other,
        }
    }

    fn start_over(&self, what: &str) -> Result<(), Failure> {
        self.forget()?;
        Err(Failure::Passing { what: what.to_owned(), came: false })
    }

    fn too_large(&self, bytes: Option<u64>) -> Result<()> {
        if bytes.is_some_and(|bytes| bytes > self.wanted.limit) {
            self.forget()?;
            let (name, limit) = (self.wanted.urls.first().copied().unwrap_or_default().to_owned(), self.wanted.limit);
            return Err(CorpusError::TooLarge { name, limit }.into());
        }
        Ok(())
    }

    fn receive(&self, url: &str, response: Response<Body>, from: u64, total: Option<u64>) -> Result<(), Failure> {
        let mut output = self.open(url, response.headers(), from)?;
        self.progress.begin("fetch", total.unwrap_or(0), Unit::Bytes);
        self.progress.advance(from);
        let mut body = response.into_body().into_reader();
        let (mut have, mut buffer) = (from, vec![0; 1 << 16]);
        let broken = loop {
            if self.progress.interrupted() {
                return Err(Error::Interrupted.into());
            }
            match body.read(&mut buffer) {
                Ok(0) => break None,
                Ok(read) => {
                    output.write_all(&buffer[..read]).map_err(Error::io(&self.partial, "write to"))?;
                    have += read as u64;
                    self.too_large(Some(have))?;
                    self.progress.advance(read as u64);
                }
                Err(error) => break Some(error.to_string()),
            }
        };
        self.progress.end();
        output.sync_all().map_err(Error::io(&self.partial, "flush to the disk"))?;
        let short = total.filter(|total| have < *total).map(|total| format!("{have} of {total} bytes came"));
        match broken.or(short) {
            Some(what) => Err(Failure::Passing { what, came: have > from }),
            None => Ok(()),
        }
    }

    /// Opens the file to continue at `from`, and notes of which version it is.
    fn open(&self, url: &str, headers: &HeaderMap, from: u64) -> Result<File> {
        if from == 0 {
            let state = State { url: url.to_owned(), etag: strong_etag(headers) };
            let json = serde_json::to_vec(&state).unwrap_or_default();
            write(&self.partial, b"")?;
            write(&self.state, &json)?;
        }
        let mut file =
            OpenOptions::new().write(true).open(&self.partial).map_err(Error::io(&self.partial, "write to"))?;
        file.seek(SeekFrom::Start(from)).map_err(Error::io(&self.partial, "write to"))?;
        Ok(file)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(Error::io(path, "write"))
}

/// The entity tag, if it stands for the very bytes.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get("etag")?.to_str().ok()?;
    tag.starts_with('"').then(|| tag.to_owned())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// First byte and total of `bytes FIRST-LAST/TOTAL`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let (range, total) = headers.get("content-range")?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()))
}
