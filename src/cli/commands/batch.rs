//! `tcq4 batch`: many conversions unattended.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::json;

use super::batch_lines::Lines;
use super::{batch_report, batch_text, convert};
use crate::calib::MomentsRequest;
use crate::cli::args::{BatchArgs, Cli, Command, StoreArgs};
use crate::cli::{Outcome, Session, data};
use crate::convert::moments_requests;
use crate::error::{Error, Result};
use crate::pipeline::child::Launcher;
use crate::pipeline::events::{Event, EventFile, Listener};
use crate::pipeline::expand::expand;
use crate::pipeline::hub::Hub;
use crate::pipeline::job::Workshop;
use crate::pipeline::metrics::MetricsFile;
use crate::pipeline::plan::{Budget, Estimate, Moments, Planner, give_out};
use crate::pipeline::runner::{self, Preparation, Summary, shared_moments};
use crate::pipeline::spec::Spec;
use crate::pipeline::state::Folder;
use crate::util::atomic_file::{check_target, folder_of};
use crate::util::hash::sha256_hex;
use crate::util::process::free_memory;
use crate::util::progress::Progress;

/// What a second moment takes for a pair of channels: half of a matrix of 64-bit numbers.
const MOMENT_BYTES: u64 = 4;

pub(in crate::cli) fn run(session: &Session, args: &BatchArgs) -> Outcome {
    let spec = Spec::read(&args.batch)?;
    let (outputs, store) = (Outputs::of(args)?, absolute_store(&args.store)?);
    enter_folder(&args.batch)?;
    let tasks = expand(&spec)?;
    let folder = Folder::create(Path::new(&spec.state), data::folder("TMPDIR"))?;
    let at_a_time = args.jobs.or(spec.jobs).unwrap_or(1).max(1) as usize;
    let budget = Budget {
        memory: args.memory.map(|size| size.0).or(spec.memory.map(|size| size.0)).unwrap_or_else(free_memory),
        disk: args.disk.map(|size| size.0).or(spec.disk.map(|size| size.0)),
    };
    let ears = Ears::open(session, args, &outputs)?;
    let planner = ConvertPlanner { session, store: &store };
    let preparation = Preparation {
        spec: &spec,
        folder: &folder,
        planner: &planner,
        hub: &hub(&store),
        listener: &ears,
        progress: &session.progress,
        force: args.force,
        dry: args.dry_run,
        timed: args.timed,
    };
    let jobs = tasks.len();
    if !args.dry_run {
        let (batch, memory, tcq4) = (outputs.batch.clone(), budget.memory, env!("CARGO_PKG_VERSION"));
        ears.hear(&Event::BatchBegin { batch, jobs, at_a_time, memory, tcq4 });
    }
    let mut prepared = preparation.all(tasks)?;
    let shared = shared_moments(&prepared);
    give_out(&mut prepared, &folder, &shared, budget, at_a_time);
    if args.dry_run {
        if session.progress.interrupted() {
            return Err(Error::Interrupted.into());
        }
        session.printer.text(&batch_text::plan(&prepared, budget, at_a_time));
        session.printer.record("batch-plan", json!({ "jobs": batch_text::plan_record(&prepared), "budget": budget }));
        return Ok(batch_text::plan_code(&prepared));
    }
    let launcher = launcher(session, &store, at_a_time)?;
    let shop = Workshop {
        spec: &spec,
        folder: &folder,
        launcher: &launcher,
        listener: &ears,
        progress: &session.progress,
        force: args.force,
        shared_moments: shared,
    };
    let summary = runner::run(&shop, &prepared, at_a_time, budget.memory);
    finish(session, &outputs, &ears, &summary)
}

/// Tells how it ended, everywhere.
fn finish(session: &Session, outputs: &Outputs, ears: &Ears<'_>, summary: &Summary) -> Outcome {
    let (jobs, seconds, exit_code) = (summary.counts(), summary.seconds, summary.exit_code());
    ears.hear(&Event::BatchEnd { jobs, seconds, exit_code });
    let title = format!("Batch {}", outputs.batch.file_stem().unwrap_or_default().to_string_lossy());
    for path in ears.failed() {
        session.progress.note(&format!("{}: something could not be written to it", path.display()));
    }
    session.printer.text(&batch_text::summary(summary));
    session.printer.record("batch", batch_report::Record::of(summary));
    // Last: what was done is told whatever becomes of its report.
    match outputs.report.as_ref().map_or(Ok(()), |path| batch_report::write(path, summary, &title)) {
        Err(error) if exit_code == 0 => Err(error.into()),
        Err(error) => {
            session.progress.note(&format!("the report was not written: {error}"));
            Ok(exit_code)
        }
        Ok(()) => Ok(exit_code),
    }
}

/// The files that are written besides the models, named from where the command was typed.
struct Outputs {
    batch: PathBuf,
    events: Option<PathBuf>,
    report: Option<PathBuf>,
    metrics: Option<PathBuf>,
}

impl Outputs {
    fn of(args: &BatchArgs) -> Result<Self> {
        let absolute = |path: &PathBuf| {
            let slash = path.as_os_str().to_string_lossy().ends_with('/');
            let absolute = std::path::absolute(path).map_err(Error::io(path, "find"))?;
            Ok::<_, Error>(if slash { absolute.join("") } else { absolute })
        };
        let optional = |path: &Option<PathBuf>| path.as_ref().map(absolute).transpose();
        let batch = absolute(&args.batch)?;
        let (events, report, metrics) = (optional(&args.events)?, optional(&args.report)?, optional(&args.metrics)?);
        if let Some(path) = report.as_ref().filter(|_| !args.dry_run) {
            batch_report::check(path, &[&batch])?;
        }
        for path in events.iter().chain(&metrics) {
            check_target(path, true, &[&batch])?;
        }
        Ok(Self { batch, events, report, metrics })
    }
}

/// Everything in the batch file is named from its folder: so are the jobs started there, and an output does not depend on where it was typed.
fn enter_folder(batch: &Path) -> Result<()> {
    let folder = folder_of(batch);
    std::env::set_current_dir(folder).map_err(Error::io(folder, "go to"))
}

/// The way to data sets, named from where the command was typed.
fn absolute_store(args: &StoreArgs) -> Result<StoreArgs> {
    let absolute = |path: &PathBuf| std::path::absolute(path).map_err(Error::io(path, "find"));
    Ok(StoreArgs { data_dir: args.data_dir.as_ref().map(absolute).transpose()?, ..args.clone() })
}

fn hub(args: &StoreArgs) -> Hub {
    let store = data::store(args);
    let text = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let cache = store.hub.unwrap_or_else(|| "hub".into());
    // Without a token in the environment the client library takes the one beside the cache.
    Hub { endpoint: text("HF_ENDPOINT"), token: text("HF_TOKEN"), offline: store.offline, cache }
}

/// Jobs share the threads of the batch, and its way to data sets.
fn launcher(session: &Session, store: &StoreArgs, at_a_time: usize) -> Result<Launcher> {
    let program = std::env::current_exe().map_err(Error::io("tcq4", "find"))?;
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = session.global.threads.map_or_else(cores, |threads| threads as usize);
    let threads = (threads / at_a_time).max(1).to_string();
    let mut options: Vec<OsString> = ["--json", "--threads", &threads].map(OsString::from).to_vec();
    options.extend(session.global.isa.iter().flat_map(|isa| ["--isa".to_owned(), isa.to_string()]).map(OsString::from));
    let mut launcher = Launcher::new(program, options);
    launcher.set("TCQ4_OFFLINE", store.offline.then(|| "1".into()));
    launcher.set("TCQ4_DATA_MIRROR", store.data_mirror.clone().map(OsString::from));
    launcher.set("TCQ4_DATA_DIR", store.data_dir.clone().map(PathBuf::into_os_string));
    Ok(launcher)
}

/// Everybody who wants to know what happens.
struct Ears<'a> {
    lines: Lines<'a>,
    events: Option<EventFile>,
    metrics: Option<MetricsFile>,
}

impl<'a> Ears<'a> {
    fn open(session: &'a Session, args: &BatchArgs, outputs: &Outputs) -> Result<Self> {
        let wanted = |path: &Option<PathBuf>| path.clone().filter(|_| !args.dry_run);
        let events = wanted(&outputs.events).map(|path| EventFile::open(&path)).transpose()?;
        let metrics = wanted(&outputs.metrics).map(|path| MetricsFile::create(&path)).transpose()?;
        Ok(Self { lines: Lines::new(session), events, metrics })
    }

    fn failed(&self) -> Vec<&Path> {
        let events = self.events.as_ref().and_then(EventFile::failed);
        events.into_iter().chain(self.metrics.as_ref().and_then(MetricsFile::failed)).collect()
    }
}

impl Listener for Ears<'_> {
    fn hear(&self, event: &Event) {
        self.lines.hear(event);
        if let Some(events) = &self.events {
            events.hear(event);
        }
        if let Some(metrics) = &self.metrics {
            metrics.hear(event);
        }
    }
}

/// Plans as `tcq4 convert --dry-run` does.
struct ConvertPlanner<'a> {
    session: &'a Session,
    store: &'a StoreArgs,
}

/// What a job's process would understand of these words.
fn parsed(words: &[OsString]) -> Result<Command> {
    let words = std::iter::once(OsString::from("tcq4")).chain(words.iter().cloned());
    let parsed = Cli::try_parse_from(words).map_err(|error| Error::Usage {
        message: error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        hint: None,
    })?;
    Ok(parsed.command)
}

impl Planner for ConvertPlanner<'_> {
    fn check(&self, words: &[OsString]) -> Result<()> {
        parsed(words).map(drop)
    }

    fn plan(&self, words: &[OsString], timed: bool) -> Result<Estimate> {
        let Command::Convert(mut args) = parsed(words)? else {
            return Err(Error::Usage { message: "only `convert` is planned".into(), hint: None });
        };
        args.calibration.data.store.clone_from(self.store);
        let found = convert::outlook(self.session, &args, timed)?;
        let gptq = found.recipe.needs().covers(crate::quant::Needs::SECOND_MOMENTS);
        let moments = || moments_of(&moments_requests(&found.source, &found.plan, found.recipe.memory.0).concat());
        Ok(Estimate {
            bytes: found.plan.bytes(),
            bits_per_weight: found.recipe.target().is_none().then(|| found.plan.bits()),
            work_memory: found.effort.memory(),
            model_bytes: found.source.total_bytes(),
            runs_text: found.runs_text,
            second_moments: (gptq && !found.recipe.sequential).then(moments),
            separable: !found.recipe.sequential && !found.recipe.mixes(),
            mixes: found.recipe.mixes(),
            samples: found.recipe.samples,
            substitutions: found.plan.substitutions().count() as u64,
            seconds: found.effort.seconds(),
        })
    }
}

fn moments_of(requests: &[MomentsRequest]) -> Moments {
    let squares = |request: &MomentsRequest| match &request.blocks[..] {
        [] => (request.columns as u64).pow(2),
        blocks => blocks.iter().map(|block| (block.len() as u64).pow(2)).sum(),
    };
    let bytes = requests.iter().map(|request| squares(request) * request.owners() as u64 * MOMENT_BYTES).sum();
    Moments { digest: sha256_hex(format!("{requests:?}").as_bytes()), bytes }
}
