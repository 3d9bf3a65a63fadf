//! All jobs of a batch: prepared in the order of the file, run side by side as memory allows, counted at the end. One that fails stops no other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::command;
use super::events::{Event, Listener, Status};
use super::expand::{HubModel, Origin, Task};
use super::gates;
use super::hub::Hub;
use super::job::{self, Finish, Workshop};
use super::key::{Hashes, Key};
use super::places::Places;
use super::plan::{Planner, Prepared, Verdict, verdict};
use super::spec::{OnFailure, Spec};
use super::state::{Folder, Known, Numbers, Stage};
use crate::corpus::SourceSpec;
use crate::error::{Class, Error, PipelineError, Result};
use crate::gguf::Source;
use crate::util::atomic_file;
use crate::util::progress::Progress;

/// How long a job that another run is at is left alone.
const BUSY: Duration = Duration::from_millis(100);
/// How often workers without work look up.
const GLANCE: Duration = Duration::from_millis(50);

/// What jobs are prepared with.
pub struct Preparation<'a> {
    /// The batch.
    pub spec: &'a Spec,
    /// The state of the batch.
    pub folder: &'a Folder,
    /// Knows what a conversion takes.
    pub planner: &'a dyn Planner,
    /// The way to the hub.
    pub hub: &'a Hub,
    /// Hears what is fetched.
    pub listener: &'a dyn Listener,
    /// Says whether the user asked to stop.
    pub progress: &'a dyn Progress,
    /// Whether files are replaced that are not the batch's.
    pub force: bool,
    /// Whether only the plan is wanted: nothing is fetched.
    pub dry: bool,
    /// Whether a sample is timed.
    pub timed: bool,
}

impl Preparation<'_> {
    /// Finds out about every job what can be known before any runs. What is wrong with one is its verdict.
    ///
    /// # Errors
    /// A state that cannot be written. After an interruption nothing more is found out; [`run`] begins nothing then.
    pub fn all(&self, tasks: Vec<Task>) -> Result<Vec<Prepared>> {
        let hashes = Hashes::new(self.folder.hashes());
        tasks.into_iter().map(|task| self.one(task, &hashes)).collect()
    }

    fn one(&self, task: Task, hashes: &Hashes) -> Result<Prepared> {
        let (job, recipe) = (self.folder.job(&task.output)?, self.folder.recipe(&task.recipe)?);
        let (model, key, estimate, verdict) = (PathBuf::new(), None, None, Verdict::Todo);
        let mut prepared = Prepared { task, model, key, job, recipe, estimate, verdict };
        if !self.progress.interrupted() {
            match self.look(&mut prepared, hashes) {
                Ok(()) | Err(Error::Interrupted) => {}
                Err(error) => prepared.verdict = Verdict::Refused(error),
            }
        }
        Ok(prepared)
    }

    fn look(&self, prepared: &mut Prepared, hashes: &Hashes) -> Result<()> {
        prepared.model = self.model(&prepared.task, hashes)?;
        let key = Key::of(&prepared.task, &prepared.model, hashes, self.progress)?;
        prepared.verdict = verdict(prepared.job.load()?, &key, &prepared.task.output, self.force)?;
        prepared.key = Some(key);
        if !prepared.is_todo() {
            return Ok(());
        }
        let Prepared { task, model, recipe, .. } = &*prepared;
        check_inputs(task, model)?;
        if task.gates.evaluates() {
            self.planner.check(&command::evaluate(task, model, &task.output))?;
        }
        let estimate = self.planner.plan(&command::plan(task, model, recipe, &task.output), self.timed)?;
        let early =
            Numbers { bits_per_weight: estimate.bits_per_weight, expert_share: Some(f64::MAX), ..Numbers::default() };
        if let Some(failure) = gates::check(&task.gates, &early, false) {
            let mut known = Known::new(Stage::Rejected, "", "");
            (known.message, known.numbers.bits_per_weight) = (Some(failure.to_string()), estimate.bits_per_weight);
            prepared.verdict = Verdict::Known(Box::new(known));
        }
        prepared.estimate = Some(estimate);
        Ok(())
    }

    fn model(&self, task: &Task, hashes: &Hashes) -> Result<PathBuf> {
        match &task.origin {
            Origin::File(path) => Ok(path.clone()),
            Origin::Nothing(pattern) => Err(PipelineError::NoModel { pattern: pattern.clone() }.into()),
            Origin::Hub(model) if self.dry => self.hub.locate(model).ok_or_else(|| {
                PipelineError::NotFetched { repository: model.repository.clone(), file: model.file.clone() }.into()
            }),
            Origin::Hub(model) => self.fetch(task, model, hashes),
        }
    }

    fn fetch(&self, task: &Task, model: &HubModel, hashes: &Hashes) -> Result<PathBuf> {
        let mut attempt = 1;
        loop {
            match self.hub.get(model, hashes, self.listener, self.progress) {
                Err(error) if attempt <= self.spec.retries && error.is_transient() => {
                    let pause = job::pause_after(self.spec, attempt);
                    let (job, message) = (task.name.clone(), error.to_string());
                    self.listener.hear(&Event::Retry { job, attempt, pause, message });
                    job::wait(pause, self.progress)?;
                    attempt += 1;
                }
                got => return got,
            }
        }
    }
}

/// Refuses outputs that would replace what they are made of, or what they are measured on.
fn check_inputs(task: &Task, model: &Path) -> Result<()> {
    let source = Source::open(model)?;
    let texts = task.calibration.sources.iter().flatten().chain(task.gates.texts.iter().flatten());
    let specs = texts.map(|text| SourceSpec::parse(text)).collect::<Result<Vec<_>>>()?;
    let inputs: Vec<&Path> = source.shards().chain(specs.iter().filter_map(SourceSpec::path)).collect();
    Places::of(&task.output).all().into_iter().try_for_each(|path| atomic_file::check_inputs(path, &inputs))
}

/// The second moments that more than one job needs.
pub fn shared_moments(jobs: &[Prepared]) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for job in jobs.iter().filter(|job| job.is_todo()) {
        if let Some(name) = job.second_moments() {
            *counts.entry(name).or_default() += 1;
        }
    }
    counts.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect()
}

/// How one job ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobResult {
    /// Its name.
    pub job: String,
    /// The model.
    pub model: PathBuf,
    /// The preset.
    pub preset: String,
    /// What it wrote, or should have.
    pub output: PathBuf,
    /// How it ended.
    pub status: Status,
    /// Why, if it did not end well.
    pub message: Option<String>,
    /// What was found out.
    pub numbers: Numbers,
    #[serde(skip)]
    class: Class,
}

/// How a batch ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Its jobs, in the order of its file.
    pub jobs: Vec<JobResult>,
    /// How long it took.
    pub seconds: f64,
}

impl Summary {
    /// How many jobs ended in each way that occurred.
    pub fn counts(&self) -> BTreeMap<Status, usize> {
        let mut counts = BTreeMap::new();
        for job in &self.jobs {
            *counts.entry(job.status).or_default() += 1;
        }
        counts
    }

    /// The exit code: 130 for an interruption, 4 where gates alone rejected, the code of the failures where they are alike, else 1.
    pub fn exit_code(&self) -> u8 {
        let bad = || self.jobs.iter().filter(|job| !job.status.is_good());
        if bad().any(|job| job.status == Status::Interrupted) {
            return Class::Interrupted.code();
        }
        common_code(bad().filter(|job| job.status != Status::NotBegun).map(|job| job.class))
    }
}

/// The exit code of several failures: theirs where they are alike, 1 where they differ, 0 where there are none.
pub fn common_code(classes: impl Iterator<Item = Class>) -> u8 {
    let codes: BTreeSet<u8> = classes.map(Class::code).collect();
    match codes.len() {
        0 | 1 => codes.first().copied().unwrap_or(0),
        _ => Class::Failed.code(),
    }
}

/// What is shared by the workers.
struct Board {
    /// Jobs that are still to be begun, and when at the earliest.
    waiting: Vec<(usize, Instant)>,
    memory: u64,
    running: usize,
    stopped: bool,
    results: Vec<Option<JobResult>>,
}

/// The jobs at work.
struct Floor<'a> {
    shop: &'a Workshop<'a>,
    jobs: &'a [Prepared],
    memory: u64,
    board: Mutex<Board>,
    changed: Condvar,
}

/// Runs all jobs that are to be done, `at_a_time` of them within `memory` bytes.
pub fn run(shop: &Workshop<'_>, jobs: &[Prepared], at_a_time: usize, memory: u64) -> Summary {
    let started = Instant::now();
    let waiting = (0..jobs.len()).filter(|&at| jobs[at].is_todo()).map(|at| (at, started)).collect();
    let results = jobs.iter().map(|job| settled(shop.listener, job)).collect();
    let board = Mutex::new(Board { waiting, memory: 0, running: 0, stopped: false, results });
    let floor = Floor { shop, jobs, memory, board, changed: Condvar::new() };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time.min(jobs.len())).map(|_| scope.spawn(|| floor.work())).collect();
        let mut told = false;
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            if shop.progress.interrupted() && !told {
                told = true;
                floor.lock().stopped = true;
                shop.launcher.interrupt();
            }
            floor.rest();
        }
    });
    let board = floor.board.into_inner().unwrap_or_else(PoisonError::into_inner);
    let ended = |(job, result): (&Prepared, Option<JobResult>)| result.unwrap_or_else(|| not_begun(shop, job));
    Summary { jobs: jobs.iter().zip(board.results).map(ended).collect(), seconds: started.elapsed().as_secs_f64() }
}

impl Floor<'_> {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something changes, or a moment.
    fn rest(&self) {
        drop(self.changed.wait_timeout(self.lock(), GLANCE));
    }

    /// Takes one job after the other until none is left.
    fn work(&self) {
        while let Some(at) = self.next() {
            let job = &self.jobs[at];
            let result = job::run(self.shop, job);
            let mut board = self.lock();
            board.memory -= job.memory();
            board.running -= 1;
            if let Err(Error::Pipeline(PipelineError::Busy { .. })) = result {
                board.waiting.push((at, Instant::now() + BUSY));
            } else {
                let result = result_of(job, result);
                let failed = !result.status.is_good();
                board.stopped |= failed && self.shop.spec.on_failure == OnFailure::Stop;
                tell(self.shop.listener, &result);
                board.results[at] = Some(result);
            }
            drop(board);
            self.changed.notify_all();
        }
    }

    /// The next job that fits; `None` if none is left.
    fn next(&self) -> Option<usize> {
        loop {
            let mut board = self.lock();
            board.stopped |= self.shop.progress.interrupted();
            if board.stopped || (board.waiting.is_empty() && board.running == 0) {
                return None;
            }
            let fits = |&(at, earliest): &(usize, Instant)| {
                let enough = board.running == 0 || board.memory.saturating_add(self.jobs[at].memory()) <= self.memory;
                enough && earliest <= Instant::now()
            };
            if let Some(place) = board.waiting.iter().position(fits) {
                let (at, _) = board.waiting.remove(place);
                board.memory += self.jobs[at].memory();
                board.running += 1;
                return Some(at);
            }
            drop(board);
            self.rest();
        }
    }
}

/// The result of a job that need not, or cannot, be run.
fn settled(listener: &dyn Listener, job: &Prepared) -> Option<JobResult> {
    let (status, class, message, numbers) = match &job.verdict {
        Verdict::Todo => return None,
        Verdict::Known(known) if known.stage == Stage::Done => {
            (Status::Skipped, Class::Failed, None, known.numbers.clone())
        }
        Verdict::Known(known) => (Status::Rejected, Class::Strict, known.message.clone(), known.numbers.clone()),
        Verdict::Refused(error) => (Status::Failed, error.class(), Some(error.to_string()), Numbers::default()),
        Verdict::TooLarge(error) => (Status::TooLarge, error.class(), Some(error.to_string()), Numbers::default()),
    };
    let result = JobResult { status, message, numbers, class, ..blank(job) };
    tell(listener, &result);
    Some(result)
}

fn blank(job: &Prepared) -> JobResult {
    JobResult {
        job: job.task.name.clone(),
        model: job.model.clone(),
        preset: job.task.preset.clone(),
        output: job.task.output.clone(),
        status: Status::NotBegun,
        message: None,
        numbers: Numbers::default(),
        class: Class::Failed,
    }
}

fn not_begun(shop: &Workshop<'_>, job: &Prepared) -> JobResult {
    let interrupted = shop.progress.interrupted();
    let status = if interrupted { Status::Interrupted } else { Status::NotBegun };
    let result = JobResult { status, ..blank(job) };
    tell(shop.listener, &result);
    result
}

fn result_of(job: &Prepared, result: Result<Finish>) -> JobResult {
    let (status, class, message, numbers) = match result {
        Ok(Finish::Done(known)) => (Status::Done, Class::Failed, None, known.numbers),
        Ok(Finish::Elsewhere(known)) => (Status::Skipped, Class::Failed, None, known.numbers),
        Ok(Finish::Rejected(known)) => (Status::Rejected, Class::Strict, known.message, known.numbers),
        Err(Error::Interrupted) => (Status::Interrupted, Class::Interrupted, None, Numbers::default()),
        Err(error) => {
            let numbers = job.job.load().ok().flatten().map(|known| known.numbers).unwrap_or_default();
            (Status::Failed, error.class(), Some(error.to_string()), numbers)
        }
    };
    JobResult { status, message, numbers, class, ..blank(job) }
}

fn tell(listener: &dyn Listener, result: &JobResult) {
    let JobResult { job, output, status, message, numbers, .. } = result.clone();
    listener.hear(&Event::JobEnd { job, output, status, message, numbers });
}
