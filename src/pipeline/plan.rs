//! What a job will take, and whether there is so much: memory and disk are given out before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::expand::Task;
use super::key::Key;
use super::state::{Job, Known, Stage};
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
    let Some(known) = known else {
        return if force { Ok(Verdict::Todo) } else { vacant(output) };
    };
    let same = known.key == key.output && known.gates == key.gates;
    match known.stage {
        Stage::Done if same && known.stands() => return Ok(Verdict::Known(Box::new(known))),
        // The same bytes would be rejected for the same reason.
        Stage::Rejected if same => return Ok(Verdict::Known(Box::new(known))),
        // Whatever stands there was checked to be ours when the job began.
        Stage::Begun | Stage::Written => return Ok(Verdict::Todo),
        _ => {}
    }
    let ours = known.owned.as_ref().is_some_and(super::key::Stamp::holds);
    if ours || force { Ok(Verdict::Todo) } else { vacant(output) }
}

fn vacant(output: &Path) -> Result<Verdict> {
    match fs::symlink_metadata(output) {
        Ok(_) => Err(PipelineError::Foreign { path: output.to_path_buf() }.into()),
        Err(_) => Ok(Verdict::Todo),
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
/// `shared`.
pub fn give_out(jobs: &mut [Prepared], shared: &BTreeSet<String>, budget: Budget) {
    let mut free: BTreeMap<u64, u64> = BTreeMap::new();
    let mut allowed = budget.disk.unwrap_or(u64::MAX);
    let mut moments: Vec<String> = Vec::new();
    for job in jobs.iter_mut().filter(|job| job.is_todo()) {
        let Some(estimate) = &job.estimate else { continue };
        let memory = job.memory();
        if memory > budget.memory {
            job.verdict = too_large("memory", memory, budget.memory);
            continue;
        }
        let mut disk = estimate.bytes;
        if job.task.gates.evaluates() {
            disk += estimate.model_bytes; // a copy that is decoded for the evaluation
        }
        let name = job.second_moments().filter(|name| shared.contains(name) && !moments.contains(name));
        if name.is_some() {
            disk += estimate.second_moments.as_ref().map_or(0, |moments| moments.bytes);
        }
        let folder = existing_folder(&job.task.output);
        let device = fs::metadata(&folder).map_or(0, |found| found.dev());
        let left = free.entry(device).or_insert_with(|| free_bytes(&folder));
        let least = (*left).min(allowed);
        if disk > least {
            job.verdict = too_large("disk", disk, least);
            continue;
        }
        *left -= disk;
        allowed -= disk;
        moments.extend(name);
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

/// Bytes of memory that are free for use, within the limit of the control group.
pub fn free_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let group = number("/sys/fs/cgroup/memory.max");
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
    let group = group.map_or(u64::MAX, |most| most.saturating_sub(used));
    kibibytes.map_or(u64::MAX, |kibibytes| kibibytes * 1024).min(group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::key::Stamp;
    use crate::pipeline::spec::Spec;
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
        assert!(matches!(says(with(Stage::Begun, "k", false), false), Ok(Verdict::Todo)));
        assert!(matches!(says(with(Stage::Rejected, "k", false), false), Ok(Verdict::Known(_))));
        fs::write(&output, "changed by hand").unwrap();
        assert!(says(with(Stage::Done, "k", true), false).is_err());
    }

    #[test]
    fn jobs_that_do_not_fit_leave_room_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let folder = state::Folder::create(dir.path()).unwrap();
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
        give_out(&mut jobs, &BTreeSet::new(), Budget { memory: 10, disk: Some(100) });
        let fits: Vec<_> = jobs.iter().map(Prepared::is_todo).collect();
        assert_eq!(fits, [true, false, true]);
        let Verdict::TooLarge(error) = &jobs[1].verdict else { panic!("{:?}", jobs[1].verdict) };
        assert_eq!(error.to_string(), "disk: 50 B needed, 40 B there");
        jobs[2].estimate = Some(estimate(40, 11));
        give_out(&mut jobs, &BTreeSet::new(), Budget { memory: 10, disk: None });
        assert!(!jobs[2].is_todo());
    }
}
