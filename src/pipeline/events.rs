//! What happens in a batch, as values: for a file of JSON lines, a table on a terminal, a file for scrapers. README.md lists every field.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use serde::Serialize;

use super::state::Numbers;
use crate::error::{Error, Result};

/// The least time between two events of progress of one job in a file.
const PROGRESS_SECONDS: f64 = 1.0;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It was done.
    Done,
    /// It was done before.
    Skipped,
    /// A gate rejected the output.
    Rejected,
    /// It failed.
    Failed,
    /// It does not fit into memory or on the disk, and was not begun.
    TooLarge,
    /// It was interrupted, or not begun for that.
    Interrupted,
    /// It was not begun, as a job before it failed.
    NotBegun,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 7] = [
        Status::Done,
        Status::Skipped,
        Status::Rejected,
        Status::Failed,
        Status::TooLarge,
        Status::Interrupted,
        Status::NotBegun,
    ];

    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Status::Done => "done",
            Status::Skipped => "skipped",
            Status::Rejected => "rejected",
            Status::Failed => "failed",
            Status::TooLarge => "too-large",
            Status::Interrupted => "interrupted",
            Status::NotBegun => "not-begun",
        }
    }

    /// Whether the output is there and passed.
    pub fn is_good(self) -> bool {
        matches!(self, Status::Done | Status::Skipped)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The batch begins.
    BatchBegin {
        /// Its file.
        batch: PathBuf,
        /// How many jobs it has.
        jobs: usize,
        /// How many run at a time.
        at_a_time: usize,
        /// Bytes of memory that they may take together.
        memory: u64,
        /// Version of the program.
        tcq4: &'static str,
    },
    /// A model comes from the hub.
    Fetch {
        /// The repository.
        repository: String,
        /// The file.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// Bytes of all.
        total: u64,
    },
    /// A job begins.
    JobBegin {
        /// Its name.
        job: String,
        /// What it writes.
        output: PathBuf,
        /// Which try, from 1.
        attempt: u32,
    },
    /// A phase of a job begins.
    PhaseBegin {
        /// The job.
        job: String,
        /// What it does.
        phase: String,
        /// How much there is to do.
        total: u64,
        /// Of what: bytes, tokens or items.
        unit: String,
    },
    /// A phase of a job goes on.
    PhaseProgress {
        /// The job.
        job: String,
        /// What it does.
        phase: String,
        /// How much is done.
        done: u64,
        /// How much there is to do.
        total: u64,
        /// Seconds since the phase began.
        seconds: f64,
        /// The most memory of the process so far, in bytes.
        peak_memory: u64,
    },
    /// A phase of a job is over.
    PhaseEnd {
        /// The job.
        job: String,
        /// What it did.
        phase: String,
        /// How long it took.
        seconds: f64,
    },
    /// A job says something.
    Note {
        /// The job.
        job: String,
        /// What.
        text: String,
    },
    /// A job will be tried again.
    Retry {
        /// The job.
        job: String,
        /// The try that failed, from 1.
        attempt: u32,
        /// Seconds until the next one.
        pause: f64,
        /// Why it failed.
        message: String,
    },
    /// A job is over.
    JobEnd {
        /// The job.
        job: String,
        /// What it wrote, or should have.
        output: PathBuf,
        /// How it ended.
        status: Status,
        /// Why, if it did not end well.
        message: Option<String>,
        /// What was found out.
        numbers: Numbers,
    },
    /// The batch is over.
    BatchEnd {
        /// Jobs by how they ended.
        jobs: std::collections::BTreeMap<Status, usize>,
        /// How long it took.
        seconds: f64,
        /// The program's exit code.
        exit_code: u8,
    },
}

/// Who wants to know what happens, from any thread.
pub trait Listener: Sync {
    /// Something happened.
    fn hear(&self, event: &Event);
}

/// A file of JSON lines, to which every run appends.
pub struct EventFile {
    path: PathBuf,
    inside: Mutex<Inside>,
}

struct Inside {
    file: File,
    /// Jobs and when they last told of progress.
    told: Vec<(String, Instant)>,
    failed: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

impl EventFile {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(Error::io(path, "open"))?;
        let inside = Mutex::new(Inside { file, told: Vec::new(), failed: false });
        Ok(Self { path: path.to_path_buf(), inside })
    }

    /// The file, if something could not be written to it.
    pub fn failed(&self) -> Option<&Path> {
        self.inside.lock().is_ok_and(|inside| inside.failed).then_some(&self.path)
    }
}

impl Listener for EventFile {
    fn hear(&self, event: &Event) {
        let Ok(mut inside) = self.inside.lock() else { return };
        if let Event::PhaseProgress { job, .. } = event {
            let told = inside.told.iter_mut().find(|(known, _)| known == job);
            match told {
                Some((_, at)) if at.elapsed().as_secs_f64() < PROGRESS_SECONDS => return,
                Some((_, at)) => *at = Instant::now(),
                None => inside.told.push((job.clone(), Instant::now())),
            }
        }
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let Ok(mut line) = serde_json::to_string(&Line { time, event }) else { return };
        line.push('\n');
        // One write a line: lines of two runs do not mix.
        inside.failed |= inside.file.write_all(line.as_bytes()).is_err();
    }
}
