//! One job from its beginning to its end: make the output, measure it, hold it against the gates, give it its name. Whatever a kill leaves
//! behind is taken up by the next run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::child::{Launcher, Report};
use super::command::{self, Shared, Way};
use super::events::{Event, Listener};
use super::gates::{self, Failure};
use super::key::{Key, Stamp};
use super::places::Places;
use super::plan::{Estimate, Prepared, Verdict, verdict};
use super::spec::{Rejected, Spec};
use super::state::{Folder, Known, Numbers, Stage};
use crate::error::{Class, Error, PipelineError, Result};
use crate::util::atomic_file;
use crate::util::progress::Progress;

/// How often an interruption is looked for while nothing happens.
const GLANCE: Duration = Duration::from_millis(20);
/// Seconds that a pause before another try takes at most.
const LONGEST_PAUSE: f64 = 3600.0;

/// What all jobs of a run share.
pub struct Workshop<'a> {
    /// The batch.
    pub spec: &'a Spec,
    /// Its state.
    pub folder: &'a Folder,
    /// Starts processes.
    pub launcher: &'a Launcher,
    /// Hears what happens.
    pub listener: &'a dyn Listener,
    /// Says whether the user asked to stop.
    pub progress: &'a dyn Progress,
    /// Whether files are replaced that are not the batch's.
    pub force: bool,
    /// The second moments that several jobs need.
    pub shared_moments: BTreeSet<String>,
}

/// How a job ended, if it was not busy elsewhere.
pub enum Finish {
    /// The output is there and passed.
    Done(Known),
    /// Another run did it.
    Elsewhere(Known),
    /// A gate rejected it.
    Rejected(Known),
}

/// A folder that is empty at first, and gone at the end; what a killed run left in it goes too.
struct Temporary(PathBuf);

impl Temporary {
    fn create(path: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(path);
        fs::create_dir_all(path).map_err(Error::io(path, "create the folder"))?;
        // Jobs run in the folder of the batch, but their temporary files need not.
        std::path::absolute(path).map(Self).map_err(Error::io(path, "find"))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One job at work.
struct Work<'a> {
    shop: &'a Workshop<'a>,
    prepared: &'a Prepared,
    temporary: &'a Path,
    key: &'a Key,
    estimate: &'a Estimate,
    places: Places,
    known: Known,
}

/// Runs a job, again and again while its failure may pass. [`PipelineError::Busy`] where another run is at it.
///
/// # Errors
/// What the last try failed with.
pub fn run(shop: &Workshop<'_>, prepared: &Prepared) -> Result<Finish> {
    let (Some(key), Some(estimate)) = (&prepared.key, &prepared.estimate) else {
        return Err(PipelineError::NoRecord.into()); // a job that is to be done has both
    };
    let busy = || PipelineError::Busy { output: prepared.task.output.clone() };
    let Some(_lock) = prepared.job.lock()? else { return Err(busy().into()) };
    let before = prepared.job.load()?;
    let temporary = Temporary::create(&shop.folder.temporary(&prepared.job))?;
    if let Verdict::Known(known) = verdict(before.clone(), key, &prepared.task.output, shop.force)? {
        return Ok(if known.stage == Stage::Done { Finish::Elsewhere(*known) } else { Finish::Rejected(*known) });
    }
    let mut work = Work {
        shop,
        prepared,
        temporary: &temporary.0,
        key,
        estimate,
        known: Known::new(Stage::Begun, &key.output, &key.gates),
        places: Places::of(&prepared.task.output),
    };
    work.take_up(before)?;
    loop {
        work.known.numbers.attempts += 1;
        let attempt = work.known.numbers.attempts;
        let started = Instant::now();
        let result = work.attempt(attempt);
        work.known.numbers.seconds += started.elapsed().as_secs_f64();
        match result {
            Ok(None) => return work.publish().map(Finish::Done),
            Ok(Some(failure)) => return work.reject(&failure).map(Finish::Rejected),
            Err(error @ (Error::Interrupted | Error::Pipeline(PipelineError::Busy { .. }))) => return Err(error),
            Err(error) if attempt > shop.spec.retries || !error.is_transient() => {
                work.fail(&error)?;
                return Err(error);
            }
            Err(error) => work.pause(attempt, &error)?,
        }
    }
}

impl Work<'_> {
    /// Goes on from what an earlier run left.
    fn take_up(&mut self, before: Option<Known>) -> Result<()> {
        let Some(before) = before else { return Ok(()) };
        let output = &self.places.output;
        self.known.owned = if before.owns(output) { Stamp::of(output) } else { None };
        if before.key != self.key.output {
            // Layers that were rounded for other settings are of no use, and in the way.
            let _ = fs::remove_dir_all(self.places.partial());
            return Ok(());
        }
        let is_whole = matches!(before.stage, Stage::Written | Stage::Rejected | Stage::Done);
        if let Some(stamp) = before.left(output).filter(|_| is_whole) {
            self.known.stage = Stage::Written;
            self.known.stamp = Some(stamp);
            self.known.numbers = Numbers { attempts: 0, ..before.numbers };
            self.save()?;
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        self.prepared.job.save(&self.known)
    }

    /// One try. `Some` if a gate fails.
    fn attempt(&mut self, attempt: u32) -> Result<Option<Failure>> {
        let to_make = self.known.stage != Stage::Written;
        // Found out first: another job may be at what this one needs, and then it has not begun.
        let way = if to_make { Some(self.way()?) } else { None };
        let (job, output) = (self.prepared.task.name.clone(), self.prepared.task.output.clone());
        self.shop.listener.hear(&Event::JobBegin { job, output, attempt });
        if let Some((way, _locks)) = way {
            (self.known.stage, self.known.stamp) = (Stage::Begun, None);
            self.save()?;
            if let Some(failure) = self.produce(&way)? {
                return Ok(Some(failure));
            }
            self.known.stage = Stage::Written;
            self.save()?;
        }
        self.pass()
    }

    fn produce(&mut self, way: &Way) -> Result<Option<Failure>> {
        let unchecked = &self.places.unchecked;
        let folder = atomic_file::folder_of(unchecked);
        fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        let Prepared { task, model, recipe, .. } = self.prepared;
        let found = self.estimate.mixes.then(|| self.shop.folder.sensitivities(&self.key.output));
        let words = command::produce(task, model, recipe, unchecked, way, found.as_deref());
        let (record, code) = self.run(&words)?;
        self.known.stamp = Stamp::of(&self.places.unchecked);
        gates::read_record(&record, self.estimate, &mut self.known.numbers);
        Ok((code == i32::from(Class::Strict.code())).then_some(Failure::Fallbacks))
    }

    /// How the output is made, and locks on what will be measured for others too.
    fn way(&self) -> Result<(Way, Vec<fs::File>)> {
        let Some(name) = self.prepared.statistics() else {
            return Ok((Way::Convert(Shared::default()), Vec::new()));
        };
        let (folder, moments) = (self.shop.folder, self.prepared.second_moments());
        let is_shared = moments.as_ref().is_some_and(|name| self.shop.shared_moments.contains(name));
        let statistics = folder.statistics(&name);
        let kept = moments.as_ref().map(|name| folder.second_moments(name));
        let is_there = || statistics.exists() && kept.as_ref().is_none_or(|kept| kept.exists());
        if !(self.estimate.separable && is_there()) {
            let mut locks = Vec::new();
            if !(self.estimate.separable && statistics.exists()) {
                locks.push(self.lock(&name)?);
            }
            if let Some(name) = moments.as_ref().filter(|_| is_shared) {
                locks.push(self.lock(name)?);
            }
            // What another job had the lock for may be there by now.
            if !(self.estimate.separable && is_there()) {
                let second_moments = kept.filter(|_| is_shared);
                return Ok((Way::Convert(Shared { statistics: Some(statistics), second_moments }), locks));
            }
        }
        Ok((Way::Quantize(Shared { statistics: Some(statistics), second_moments: kept }), Vec::new()))
    }

    fn lock(&self, name: &str) -> Result<fs::File> {
        let busy = || PipelineError::Busy { output: self.prepared.task.output.clone() };
        Ok(self.shop.folder.lock_statistics(name)?.ok_or_else(busy)?)
    }

    /// Measures what the gates ask for.
    fn pass(&mut self) -> Result<Option<Failure>> {
        let gates = &self.prepared.task.gates;
        if gates.min_expert_share.is_some() {
            let statistics = self.prepared.statistics().map(|name| self.shop.folder.statistics(&name));
            self.known.numbers.expert_share = gates::expert_share(&self.prepared.model, statistics.as_deref())?;
        }
        let cheap = gates::check(gates, &self.known.numbers, false);
        if cheap.is_some() || !gates.evaluates() {
            return Ok(cheap);
        }
        let words = command::evaluate(&self.prepared.task, &self.prepared.model, &self.written()?);
        let (record, _) = self.run(&words)?;
        self.known.numbers.kld = gates::divergence(&record);
        Ok(gates::check(&self.prepared.task.gates, &self.known.numbers, true))
    }

    /// Runs one process and tells what it reports.
    fn run(&mut self, words: &[std::ffi::OsString]) -> Result<(Value, i32)> {
        let (listener, job) = (self.shop.listener, &self.prepared.task.name);
        let mut teller = Teller { listener, job, phase: None };
        let log = self.shop.folder.log(&self.prepared.job);
        let peak = &mut self.known.numbers.peak_memory;
        let ended = self.shop.launcher.run(words, (&log, self.temporary), |report, so_far| {
            *peak = so_far.max(*peak);
            teller.tell(report, so_far);
        })?;
        *peak = ended.peak_memory.max(*peak);
        Ok((ended.record.ok_or(PipelineError::NoRecord)?, ended.code))
    }

    /// Where the file lies that this job, or an earlier run of it, wrote.
    fn written(&self) -> Result<PathBuf> {
        let stamp = self.known.stamp.as_ref().filter(|stamp| stamp.holds());
        let changed = || PipelineError::Changed { path: self.places.unchecked.clone() };
        Ok(stamp.ok_or_else(changed)?.path.clone())
    }

    /// Gives the output its name, and the job its end.
    fn publish(mut self) -> Result<Known> {
        let (written, output) = (self.written()?, &self.places.output);
        if written != *output {
            let replaces = self.shop.force || self.known.owned.as_ref().is_some_and(Stamp::holds);
            atomic_file::rename(&written, output, replaces)?;
        }
        self.known.stamp = Stamp::of(output);
        self.known.owned.clone_from(&self.known.stamp);
        self.known.stage = Stage::Done;
        self.known.message = None;
        // Before it is said to be done: nobody would look for it after that.
        let _ = fs::remove_dir_all(self.temporary);
        self.save()?;
        Ok(self.known)
    }

    fn reject(mut self, failure: &Failure) -> Result<Known> {
        let (written, rejected) = (self.written()?, &self.places.rejected);
        self.known.message = Some(failure.to_string());
        self.known.stage = Stage::Rejected;
        self.known.stamp = None;
        match self.shop.spec.rejected {
            Rejected::Keep if written == *rejected => {}
            Rejected::Keep => atomic_file::rename(&written, rejected, true)?,
            Rejected::Remove => fs::remove_file(&written).map_err(Error::io(&written, "remove"))?,
        }
        // What fell back is no output for any other gates.
        if *failure != Failure::Fallbacks {
            self.known.stamp = Stamp::of(rejected);
        }
        self.save()?;
        Ok(self.known)
    }

    fn fail(&mut self, error: &Error) -> Result<()> {
        // What was written stays known, so that only the gates are tried again.
        if self.known.stage != Stage::Written {
            self.known.stage = Stage::Failed;
        }
        self.known.message = Some(error.to_string());
        self.save()
    }

    /// Waits before the next try.
    fn pause(&self, attempt: u32, error: &Error) -> Result<()> {
        let pause = pause_after(self.shop.spec, attempt);
        let (job, message) = (self.prepared.task.name.clone(), error.to_string());
        self.shop.listener.hear(&Event::Retry { job, attempt, pause, message });
        wait(pause, self.shop.progress)
    }
}

/// Seconds before the try after this one: twice as long each time.
pub(super) fn pause_after(spec: &Spec, attempt: u32) -> f64 {
    (spec.retry_pause.get() * f64::from(2_u32.saturating_pow(attempt.saturating_sub(1)))).clamp(0.0, LONGEST_PAUSE)
}

/// Waits so many seconds.
///
/// # Errors
/// [`Error::Interrupted`].
pub(super) fn wait(seconds: f64, progress: &dyn Progress) -> Result<()> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < until {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        std::thread::sleep(GLANCE);
    }
    Ok(())
}

/// Turns what a process reports into events of its job.
struct Teller<'a> {
    listener: &'a dyn Listener,
    job: &'a str,
    phase: Option<(String, u64, Instant)>,
}

impl Teller<'_> {
    fn tell(&mut self, report: &Report, peak_memory: u64) {
        let job = self.job.to_owned();
        let event = match report {
            Report::Begin { phase, total, unit } => {
                self.phase = Some((phase.clone(), *total, Instant::now()));
                Event::PhaseBegin { job, phase: phase.clone(), total: *total, unit: unit.clone() }
            }
            Report::At { done } => {
                let Some((phase, total, since)) = &self.phase else { return };
                let (phase, total, seconds) = (phase.clone(), *total, since.elapsed().as_secs_f64());
                Event::PhaseProgress { job, phase, done: *done, total, seconds, peak_memory }
            }
            Report::End { seconds } => {
                let Some((phase, ..)) = self.phase.take() else { return };
                Event::PhaseEnd { job, phase, seconds: *seconds }
            }
            Report::Note { text } => Event::Note { job, text: text.clone() },
            Report::Error { .. } | Report::Peak { .. } => return,
        };
        self.listener.hear(&event);
    }
}
