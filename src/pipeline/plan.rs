//! What a job will take, and whether there is so much: memory and disk are given out before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::expand::Task;
use super::key::Key;
use super::places::Places;
use super::state::{Folder, Job, Known};
use crate::error::{Error, PipelineError, Result};
use crate::util::units::Bytes;

/// What a conversion will take and give.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    /// Bytes of the output.
    pub bytes: u64,
    /// Bits a weight; not known before the work where types are chosen for a target.
    pub bits_per_weight: Option<f64>,
    /// Bytes of memory that nothing else can use: work and second moments.
    pub work_memory: u64,
    /// Bytes of the model, which is mapped.
    pub model_bytes: u64,
    /// Whether text runs through the model.
    pub runs_text: bool,
    /// The second moments that GPTQ needs, if it does.
    pub second_moments: Option<Moments>,
    /// Whether a process without the model running can do it, given what was measured.
    pub separable: bool,
    /// Whether types or paths are chosen by measurement.
    pub mixes: bool,
    /// Chunks of text, at most.
    pub samples: u32,
    /// Tensors that take another type than TCQ4 where that should be.
    pub substitutions: u64,
    /// Seconds of work, where a sample was timed.
    pub seconds: Option<f64>,
}

/// Second moments on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moments {
    /// A hash of which ones they are, and in which blocks: it depends on the recipe's memory and types.
    pub digest: String,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Who knows what a `convert` command line will take.
pub trait Planner: Sync {
    /// Refuses what the command line of a gate would be refused for.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self, words: &[OsString]) -> Result<()>;

    /// The estimate; `timed` asks for seconds, for which a sample of the work is done.
    ///
    /// # Errors
    /// Whatever the command would refuse before it writes anything.
    fn plan(&self, words: &[OsString], timed: bool) -> Result<Estimate>;
}

/// What becomes of a job.
#[derive(Debug)]
pub enum Verdict {
    /// It is to be done.
    Todo,
    /// It was done, or rejected, by an earlier run.
    Known(Box<Known>),
    /// It cannot be done.
    Refused(Error),
    /// It does not fit.
    TooLarge(Error),
}

/// A job with everything that is known before it runs.
#[derive(Debug)]
pub struct Prepared {
    /// What is asked for.
    pub task: Task,
    /// Where the model lies.
    pub model: PathBuf,
    /// What the job is known by; `None` where that could not be found out.
    pub key: Option<Key>,
    /// Its place in the state.
    pub job: Job,
    /// The recipe's file.
    pub recipe: PathBuf,
    /// What it takes; `None` for what need not or cannot be done.
    pub estimate: Option<Estimate>,
    /// What becomes of it.
    pub verdict: Verdict,
}

impl Prepared {
    /// The name of its statistics.
    pub fn statistics(&self) -> Option<String> {
        let (key, estimate) = (self.key.as_ref()?, self.estimate.as_ref()?);
        estimate.runs_text.then(|| key.statistics(estimate.samples))
    }

    /// The name of its second moments, where a file of them could serve.
    pub fn second_moments(&self) -> Option<String> {
        let estimate = self.estimate.as_ref().filter(|estimate| estimate.separable)?;
        Some(format!("{}-{}", self.statistics()?, super::key::short(&estimate.second_moments.as_ref()?.digest)))
    }

    /// Bytes of memory at its peak.
    pub fn memory(&self) -> u64 {
        let Some(estimate) = &self.estimate else { return 0 };
        // llama.cpp reads all weights for every chunk: without them in memory it would read them from the disk again and again.
        let running = if estimate.runs_text { estimate.model_bytes } else { 0 };
        let gates = if self.task.gates.evaluates() { 2 * estimate.model_bytes } else { 0 };
        (estimate.work_memory + running).max(gates)
    }

    /// Whether it is to be done.
    pub fn is_todo(&self) -> bool {
        matches!(self.verdict, Verdict::Todo)
    }
}

/// What the output's record says about whether there is work left.
///
/// # Errors
/// [`PipelineError::Foreign`] where the output would replace what is not this batch's.
pub fn verdict(known: Option<Known>, key: &Key, output: &Path, force: bool) -> Result<Verdict> {
    match known {
        Some(known) if known.key == key.output && known.gates == key.gates && known.is_over() => {
            Ok(Verdict::Known(Box::new(known)))
        }
        _ if force => Ok(Verdict::Todo),
        known => Places::of(output).check(known.as_ref()).map(|()| Verdict::Todo),
    }
}

/// What all jobs together may take.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Budget {
    /// Bytes of memory of all jobs that run at a time.
    pub memory: u64,
    /// Bytes that they may write, besides what the disks have.
    pub disk: Option<u64>,
}

/// Refuses jobs that do not fit, in their order: those before them keep what they were given. Of the second moments those are kept that are
/// `shared`; the copies that are decoded for the gates are there for `at_a_time` jobs at once.
pub fn give_out(jobs: &mut [Prepared], folder: &Folder, shared: &BTreeSet<String>, budget: Budget, at_a_time: usize) {
    let mut disks = Disks { free: BTreeMap::new(), allowed: budget.disk.unwrap_or(u64::MAX) };
    let mut moments: BTreeSet<String> = BTreeSet::new();
    let mut copies = Copies { at_a_time, bytes: Vec::new() };
    for job in jobs.iter_mut().filter(|job| job.is_todo()) {
        let Some(estimate) = &job.estimate else { continue };
        let memory = job.memory();
        if memory > budget.memory {
            job.verdict = too_large("memory", memory, budget.memory);
            continue;
        }
        let is_kept = |name: &String| shared.contains(name) && !moments.contains(name);
        let name = job.second_moments().filter(is_kept).filter(|name| !folder.second_moments(name).exists());
        let kept = estimate.second_moments.as_ref().filter(|_| name.is_some()).map_or(0, |moments| moments.bytes);
        let copy = if job.task.gates.evaluates() { estimate.model_bytes } else { 0 };
        let (output, state) = (existing_folder(&job.task.output), existing_folder(&folder.second_moments("")));
        let temporary = existing_folder(&folder.temporary(&job.job));
        let wanted = [(&*output, estimate.bytes), (&*state, kept), (&*temporary, copies.more(copy))];
        if let Err((needed, there)) = disks.take(&wanted) {
            job.verdict = too_large("disk", needed, there);
            continue;
        }
        copies.bytes.push(copy);
        moments.extend(name);
    }
}

/// Copies of models that are there only while a job is measured.
struct Copies {
    at_a_time: usize,
    bytes: Vec<u64>,
}

impl Copies {
    /// How much more is there at once, at most, with one of so many bytes.
    fn more(&self, bytes: u64) -> u64 {
        let at_once = |mut all: Vec<u64>| {
            all.sort_unstable_by(|a, b| b.cmp(a));
            all.iter().take(self.at_a_time).sum::<u64>()
        };
        at_once([&self.bytes[..], &[bytes]].concat()) - at_once(self.bytes.clone())
    }
}

/// Disks, and what is left of them while it is given out.
struct Disks {
    /// Bytes by device.
    free: BTreeMap<u64, u64>,
    /// Bytes that may be written, on all together.
    allowed: u64,
}

impl Disks {
    /// Takes so many bytes in each of these folders, all or nothing.
    ///
    /// # Errors
    /// What is needed and what is there, in bytes.
    fn take(&mut self, wanted: &[(&Path, u64)]) -> std::result::Result<(), (u64, u64)> {
        let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
        for (folder, bytes) in wanted {
            let device = fs::metadata(folder).map_or(0, |found| found.dev());
            self.free.entry(device).or_insert_with(|| free_bytes(folder));
            *needed.entry(device).or_default() += bytes;
        }
        let all: u64 = needed.values().sum();
        if all > self.allowed {
            return Err((all, self.allowed));
        }
        if let Some((device, bytes)) = needed.iter().find(|(device, bytes)| **bytes > self.free[device]) {
            return Err((*bytes, self.free[device]));
        }
        self.allowed -= all;
        for (device, bytes) in needed {
            self.free.entry(device).and_modify(|free| *free -= bytes);
        }
        Ok(())
    }
}

fn too_large(what: &'static str, needed: u64, available: u64) -> Verdict {
    Verdict::TooLarge(
        PipelineError::Budget { what, needed: Bytes(needed).to_string(), available: Bytes(available).to_string() }
            .into(),
    )
}

/// The folder of a file, or the first one above it that is there.
fn existing_folder(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    absolute.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_path_buf()
}

fn free_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::key::Stamp;
    use crate::pipeline::spec::Spec;
    use crate::pipeline::state::Stage;
    use crate::pipeline::{expand, state};

    fn key(output: &str) -> Key {
        Key { model: "m".into(), calibration: "c".into(), output: output.into(), gates: "g".into() }
    }

    #[test]
    fn only_what_is_ours_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("o");
        let says = |known: Option<Known>, force| verdict(known, &key("k"), &output, force);
        assert!(matches!(says(None, false), Ok(Verdict::Todo)));
        fs::write(&output, "old").unwrap();
        assert!(says(None, false).unwrap_err().to_string().ends_with("is not what this batch wrote"));
        assert!(matches!(says(None, true), Ok(Verdict::Todo)));
        let stamp = Stamp::of(&output);
        let with = |stage, output: &str, owned: bool| {
            let mut known = Known::new(stage, output, "g");
            known.stamp.clone_from(&stamp);
            known.owned = stamp.clone().filter(|_| owned);
            Some(known)
        };
        assert!(matches!(says(with(Stage::Done, "k", true), false), Ok(Verdict::Known(_))));
        assert!(matches!(says(with(Stage::Done, "other", true), false), Ok(Verdict::Todo)));
        assert!(says(with(Stage::Failed, "k", false), false).is_err());
        assert!(says(with(Stage::Begun, "k", false), false).is_err(), "somebody put it there since");
        // A run ended between giving the file its name and saying so.
        assert!(matches!(says(with(Stage::Written, "k", false), false), Ok(Verdict::Todo)));
        assert!(matches!(says(with(Stage::Rejected, "k", false), false), Ok(Verdict::Known(_))));
        fs::write(&output, "changed by hand").unwrap();
        assert!(says(with(Stage::Done, "k", true), false).is_err());
        // The names beside it are the batch's once it began.
        fs::remove_file(&output).unwrap();
        fs::write(Places::of(&output).rejected, "mine").unwrap();
        assert!(says(None, false).is_err());
        assert!(matches!(says(with(Stage::Failed, "k", false), false), Ok(Verdict::Todo)));
    }

    #[test]
    fn jobs_that_do_not_fit_leave_room_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let folder = state::Folder::create(dir.path(), None).unwrap();
        let spec = "presets = [\"fast\"]\n[[model]]\nhf = \"a/b\"\n[[model]]\nhf = \"a/c\"\n[[model]]\nhf = \"a/d\"";
        let tasks = expand::expand(&Spec::parse(spec, Path::new("s")).unwrap()).unwrap();
        let estimate = |bytes: u64, work_memory: u64| Estimate {
            bytes,
            bits_per_weight: None,
            work_memory,
            model_bytes: 100,
            runs_text: false,
            second_moments: None,
            separable: true,
            mixes: false,
            samples: 1,
            substitutions: 0,
            seconds: None,
        };
        let sizes = [(60, 1), (50, 1), (40, 1)];
        let job = |(task, (bytes, memory)): (Task, (u64, u64))| Prepared {
            job: folder.job(&task.output).unwrap(),
            task,
            model: "m".into(),
            key: None,
            recipe: "r".into(),
            estimate: Some(estimate(bytes, memory)),
            verdict: Verdict::Todo,
        };
        let mut jobs: Vec<_> = tasks.into_iter().zip(sizes).map(job).collect();
        let given = |jobs: &mut [Prepared], memory, disk| {
            give_out(jobs, &folder, &BTreeSet::new(), Budget { memory, disk }, 1);
            jobs.iter().map(Prepared::is_todo).collect::<Vec<_>>()
        };
        let fits = given(&mut jobs, 10, Some(100));
        assert_eq!(fits, [true, false, true]);
        let Verdict::TooLarge(error) = &jobs[1].verdict else { panic!("{:?}", jobs[1].verdict) };
        assert_eq!(error.to_string(), "disk: 50 B needed, 40 B there");
        jobs[2].estimate = Some(estimate(40, 11));
        assert!(!given(&mut jobs, 10, None)[2]);
    }

    #[test]
    fn copies_are_there_one_after_the_other() {
        let copies = |at_a_time, bytes: &[u64]| Copies { at_a_time, bytes: bytes.to_vec() };
        assert_eq!((copies(1, &[]).more(5), copies(1, &[5]).more(5), copies(1, &[5]).more(7)), (5, 0, 2));
        assert_eq!((copies(2, &[5]).more(4), copies(2, &[5, 4]).more(6), copies(2, &[5, 4]).more(0)), (4, 2, 0));
    }
}
