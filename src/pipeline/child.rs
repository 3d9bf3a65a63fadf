//! One process of a job: starts it, hears what it reports, passes an interruption on, and says how it ended.
//!
//! Jobs are processes of their own so that one that crashes, or that the system kills for its memory, takes no other with it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, PipelineError, Result};
use crate::util::process::peak_memory;

/// The environment variable that holds the process id of the batch in its jobs: they report in [`Report`]s on stderr and end with it.
pub const PARENT: &str = "TCQ4_BATCH_PARENT";

/// A line that a job writes to stderr.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// A phase begins.
    Begin {
        /// What it is called.
        phase: String,
        /// How much there is to do.
        total: u64,
        /// Of what.
        unit: String,
    },
    /// So much of the phase is done.
    At {
        /// In its unit.
        done: u64,
    },
    /// The phase is over.
    End {
        /// How long it took.
        seconds: f64,
    },
    /// Something that the user should know.
    Note {
        /// What.
        text: String,
    },
    /// Why the process ends.
    Error {
        /// The error with its causes.
        message: String,
        /// Whether a second try may pass.
        transient: bool,
    },
    /// The most memory that the process had, in bytes; its last line.
    Peak {
        /// How much.
        bytes: u64,
    },
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Its record, where it printed one.
    pub record: Option<Value>,
    /// Exit code; 4 is no error for a job.
    pub code: i32,
    /// The most memory that it had, in bytes; 0 where the system does not say.
    pub peak_memory: u64,
}

/// The processes that run.
#[derive(Debug, Default)]
struct Running {
    pids: BTreeSet<i32>,
    /// Whether no further one may begin.
    stopped: bool,
}

/// Starts the processes of jobs, and knows those that run.
#[derive(Debug)]
pub struct Launcher {
    program: PathBuf,
    /// Options of every process.
    options: Vec<OsString>,
    /// Environment variables of every process, besides ours.
    variables: Vec<(&'static str, OsString)>,
    running: Mutex<Running>,
}

impl Launcher {
    /// Starts `program`, with these options in every process.
    pub fn new(program: PathBuf, options: Vec<OsString>) -> Self {
        Self { program, options, variables: Vec::new(), running: Mutex::default() }
    }

    /// Sets an environment variable of every process, if there is a value.
    pub fn set(&mut self, variable: &'static str, value: Option<OsString>) {
        self.variables.extend(value.map(|value| (variable, value)));
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks every process that runs to save its work and end; no other begins.
    pub fn interrupt(&self) {
        let mut running = self.lock();
        running.stopped = true;
        for pid in running.pids.iter().filter_map(|&pid| Pid::from_raw(pid)) {
            let _ = kill_process(pid, Signal::TERM); // it may be over already
        }
    }

    /// Runs one command to its end, with a file for what it says and a folder for its temporary files. `hear` gets its reports and the most memory
    /// that it has had so far.
    ///
    /// # Errors
    /// [`PipelineError::Job`] with what it said, [`PipelineError::Killed`], [`Error::Interrupted`].
    pub fn run(
        &self,
        words: &[OsString],
        (log, temporary): (&Path, &Path),
        mut hear: impl FnMut(&Report, u64),
    ) -> Result<Ended> {
        let mut log_file = File::options().append(true).create(true).open(log).map_err(Error::io(log, "open"))?;
        let said = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        writeln!(log_file, "$ tcq4 {said}").map_err(Error::io(log, "write to"))?;
        let mut child = self.start(words, temporary)?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(PipelineError::NoRecord.into()); // both are pipes
        };
        let record = std::thread::spawn(move || {
            let mut text = String::new();
            BufReader::new(stdout).read_to_string(&mut text).map(|_| text).unwrap_or_default()
        });
        let (mut last, mut peak) = (None, 0);
        let mut stderr = BufReader::new(stderr);
        let mut bytes = Vec::new();
        while stderr.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            match serde_json::from_str(&line) {
                Ok(Report::Error { message, transient }) => {
                    let _ = writeln!(log_file, "error: {message}");
                    last = Some((message, transient));
                }
                Ok(Report::Peak { bytes }) => peak = peak.max(bytes),
                Ok(report) => {
                    peak = peak.max(peak_memory(&child.id().to_string()));
                    hear(&report, peak);
                    if let Report::Note { text } = &report {
                        let _ = writeln!(log_file, "note: {text}");
                    }
                }
                Err(_) => drop(writeln!(log_file, "{line}")),
            }
        }
        let status = self.wait(child)?;
        let record = record.join().ok().and_then(|text| serde_json::from_str(&text).ok());
        let code = ended(status, last)?;
        Ok(Ended { record, code, peak_memory: peak })
    }

    fn start(&self, words: &[OsString], temporary: &Path) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(words).args(&self.options).env(PARENT, std::process::id().to_string());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.env("TMPDIR", temporary);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: the interruption of a terminal comes to us alone, and is passed on once.
        command.process_group(0);
        // Held while it starts, so that an interruption finds it in the list or comes before it.
        let mut running = self.lock();
        if running.stopped {
            return Err(Error::Interrupted);
        }
        let child = command.spawn().map_err(Error::io(&self.program, "start"))?;
        running.pids.insert(child.id() as i32);
        Ok(child)
    }

    fn wait(&self, mut child: Child) -> Result<ExitStatus> {
        // From here on its id may be another's.
        self.lock().pids.remove(&(child.id() as i32));
        child.wait().map_err(Error::io(&self.program, "wait for"))
    }
}

fn ended(status: ExitStatus, last: Option<(String, bool)>) -> Result<i32> {
    if let Some(signal) = status.signal() {
        return Err(PipelineError::Killed { signal }.into());
    }
    match (status.code().unwrap_or(1), last) {
        (130, _) => Err(Error::Interrupted),
        (0, _) => Ok(0),
        (4, None) => Ok(4),
        (code, Some((message, transient))) => Err(PipelineError::Job { message, code, transient }.into()),
        (code, None) => {
            let message = format!("the process ended with code {code} and without a word");
            Err(PipelineError::Job { message, code, transient: false }.into())
        }
    }
}

/// Ends this process when the batch that started it ends, if one did. To be called on the first thread.
pub fn end_with_parent() {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|text| text.parse::<i32>().ok()) else { return };
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // It may have ended before that.
        if rustix::process::getppid().map(Pid::as_raw_nonzero).map(std::num::NonZero::get) != Some(parent) {
            std::process::exit(1);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = parent;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(script: &str) -> (Result<Ended>, Vec<Report>, String) {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::new("/bin/sh".into(), Vec::new());
        let (mut heard, log) = (Vec::new(), dir.path().join("log"));
        let ended =
            launcher.run(&["-c".into(), script.into()], (&log, dir.path()), |report, _| heard.push(report.clone()));
        assert!(launcher.lock().pids.is_empty());
        (ended, heard, std::fs::read_to_string(log).unwrap())
    }

    #[test]
    fn reports_record_and_log_are_told_apart() {
        let note = r#"{"report":"note","text":"hm"}"#;
        let (ended, heard, log) = launch(&format!("echo '{note}' >&2; echo plain >&2; echo '{{\"a\": 1}}'"));
        let ended = ended.unwrap();
        assert_eq!((ended.record.unwrap()["a"].as_i64(), ended.code), (Some(1), 0));
        assert_eq!(heard, [Report::Note { text: "hm".into() }]);
        assert!(log.ends_with("note: hm\nplain\n"), "{log}");
    }

    #[test]
    fn every_end_has_its_error() {
        let error = |script: &str| launch(script).0.unwrap_err();
        assert!(matches!(error("exit 130"), Error::Interrupted));
        assert_eq!(error("kill -9 $$").to_string(), "killed by signal 9, as the system does when memory runs out");
        assert!(error("kill -9 $$").is_transient() && !error("kill -11 $$").is_transient());
        let said = error(r#"echo '{"report":"error","message":"no","transient":true}' >&2; exit 3"#);
        assert_eq!((said.to_string().as_str(), said.is_transient()), ("no", true));
        assert_eq!(error("exit 7").to_string(), "the process ended with code 7 and without a word");
        assert_eq!(launch("exit 4").0.unwrap().code, 4);
    }
}
