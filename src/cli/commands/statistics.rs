//! Statistics for the commands that need them: measured on the default or a given text, kept, read back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::calib::run::{COMPOSITION_NOTE, forget_checkpoint};
use crate::calib::{CalibrationOptions, Hessian, Statistics, calibrate, second_moments, store};
use crate::cli::args::CalibrationArgs;
use crate::cli::{Session, data};
use crate::convert::SecondMoments;
use crate::corpus::chunks::{Chunks, Selection};
use crate::corpus::overlap::WORTH_A_WARNING;
use crate::corpus::{Corpus, Overlap, Purpose, SourceSpec, load as load_text};
use crate::error::Result;
use crate::eval::{Estimate, Simulation, probe};
use crate::gguf::Source;
use crate::llama::{Model, ModelOptions};
use crate::util::progress::{Progress, Unit};

/// The calibration text that ships with the binary: public domain, see fixtures/README.md.
const DEFAULT_TEXT: &str = include_str!("../../../fixtures/text/calibration.txt");
/// What it is called in files.
const DEFAULT_NAME: &str = "tcq4 default calibration text";

/// Whether an interrupted run keeps what it has.
pub(super) struct Keep {
    checkpoint: Option<PathBuf>,
    resume: bool,
}

impl Keep {
    /// Keeps nothing.
    pub(super) fn in_memory() -> Self {
        Self { checkpoint: None, resume: false }
    }

    /// Keeps it beside `output`, and goes on from there if asked to.
    pub(super) fn beside(output: &Path, resume: bool) -> Self {
        let mut name = output.as_os_str().to_os_string();
        name.push(".partial");
        Self { checkpoint: Some(name.into()), resume }
    }

    /// Removes what was kept, now that the results are safe.
    pub(super) fn forget(&self) -> Result<()> {
        self.checkpoint.as_deref().map_or(Ok(()), forget_checkpoint)
    }
}

/// A model with the text that runs through it.
pub(super) struct Run<'a> {
    session: &'a Session,
    fingerprint: String,
    corpus: Corpus,
    model: Model,
    options: CalibrationOptions,
}

impl<'a> Run<'a> {
    /// Reads the text and loads the model.
    pub(super) fn open(
        session: &'a Session,
        source: &Source,
        args: &CalibrationArgs,
        specs: &[SourceSpec],
        default_samples: u32,
        keep: &Keep,
    ) -> Result<Self> {
        let samples = args.samples.unwrap_or(default_samples) as usize;
        let corpus = text(session, source, args, specs, samples)?;
        if corpus.duplicates > 0 {
            session.progress.note(&format!(
                "{} of {} samples were exact duplicates and dropped",
                corpus.duplicates,
                corpus.duplicates + corpus.samples
            ));
        }
        let model = Model::load(source.first_shard(), &ModelOptions { gpu_layers: args.ngl })?;
        let options = CalibrationOptions {
            ctx: args.ctx,
            samples,
            selection: Selection::Seeded(args.seed),
            threads: session.threads(),
            checkpoint: keep.checkpoint.clone(),
            resume: keep.resume,
            ..CalibrationOptions::default()
        };
        Ok(Self { session, fingerprint: store::fingerprint(source), corpus, model, options })
    }

    /// Keeps no sample rows.
    pub(super) fn without_rows(mut self) -> Self {
        self.options.rows = 0;
        self
    }

    /// Seconds of one pass of the text: what it begins with, and every chunk. Measures channel statistics, or second moments of `weights`.
    pub(super) fn time(&self, weights: Option<&BTreeSet<String>>) -> Result<(f64, f64)> {
        let watch = Stopwatch { progress: &self.session.progress, phase: Mutex::default() };
        let options = CalibrationOptions { samples: 1, rows: 0, checkpoint: None, ..self.options.clone() };
        let started = Instant::now();
        match weights {
            None => drop(calibrate(&self.model, &self.corpus, &self.fingerprint, &options, &watch)?),
            Some(weights) => drop(second_moments(&self.model, &self.corpus, &options, weights, &watch)?),
        }
        let chunk = watch.phase.lock().map_or(0.0, |phase| phase.1.as_secs_f64());
        Ok(((started.elapsed().as_secs_f64() - chunk).max(0.0), chunk))
    }

    /// Measures the statistics. What comes of them is the same whether they take the way through a file or not.
    pub(super) fn statistics(&self) -> Result<Statistics> {
        let progress = &self.session.progress;
        Ok(calibrate(&self.model, &self.corpus, &self.fingerprint, &self.options, progress)?.as_kept())
    }
}

impl Run<'_> {
    /// How far the model moves with each probe, on `count` chunks of the text, those first that the statistics have not seen.
    pub(super) fn probe(&self, probes: Vec<Simulation>, count: usize) -> Result<Vec<Estimate>> {
        let chunks = Chunks::of(&self.model, &self.corpus, self.options.ctx)?;
        let (samples, selection) = (self.options.samples, self.options.selection);
        let seen = chunks.plan(samples, selection).summed;
        let mut chosen = chunks.plan(samples.saturating_add(count), selection).summed;
        chosen.retain(|chunk| !seen.contains(chunk));
        chosen.truncate(count);
        let missing = (count - chosen.len()).min(seen.len());
        chosen.extend((0..missing).map(|i| seen[i * seen.len() / missing]));
        let tokens: Vec<Vec<i32>> = chosen.into_iter().map(|chunk| chunks.get(chunk)).collect();
        probe(&self.model, &tokens, probes, self.options.threads, &self.session.progress)
    }
}

/// A listener that only measures how long the last phase took.
struct Stopwatch<'a> {
    progress: &'a dyn Progress,
    phase: Mutex<(Option<Instant>, Duration)>,
}

impl Progress for Stopwatch<'_> {
    fn begin(&self, _label: &str, _total: u64, _unit: Unit) {
        if let Ok(mut phase) = self.phase.lock() {
            phase.0 = Some(Instant::now());
        }
    }

    fn advance(&self, _amount: u64) {}

    fn end(&self) {
        if let Ok(mut phase) = self.phase.lock() {
            phase.1 = phase.0.map_or(Duration::ZERO, |begun| begun.elapsed());
        }
    }

    fn note(&self, _message: &str) {}

    fn interrupted(&self) -> bool {
        self.progress.interrupted()
    }
}

impl SecondMoments for Run<'_> {
    fn measure(&self, weights: &BTreeSet<String>) -> Result<BTreeMap<String, Arc<Hessian>>> {
        second_moments(&self.model, &self.corpus, &self.options, weights, &self.session.progress)
    }
}

/// Runs the text through the model for its statistics alone.
pub(super) fn measure(
    session: &Session,
    source: &Source,
    args: &CalibrationArgs,
    specs: &[SourceSpec],
    default_samples: u32,
    keep: &Keep,
) -> Result<Statistics> {
    Run::open(session, source, args, specs, default_samples, keep)?.statistics()
}

/// The text, compared with an evaluation text if that was asked.
fn text(
    session: &Session,
    source: &Source,
    args: &CalibrationArgs,
    specs: &[SourceSpec],
    samples: usize,
) -> Result<Corpus> {
    if specs.is_empty() {
        return Corpus::from_text(DEFAULT_NAME, DEFAULT_TEXT);
    }
    let options = data::load_options(&args.data, source, samples, args.ctx, args.seed);
    let mut corpus = load_text(specs, Purpose::Calibration, &options, &session.progress)?;
    if let Some(evaluation) = &args.check_overlap {
        let evaluation = [SourceSpec::parse(evaluation)?];
        let evaluation = load_text(&evaluation, Purpose::Evaluation, &options, &session.progress)?;
        let overlap = Overlap::measure(&corpus, &evaluation);
        if overlap.share >= WORTH_A_WARNING {
            session.progress.note(&format!(
                "{:.1} % of the calibration text stands in {} too: measurements on it will look too good",
                overlap.share * 100.0,
                overlap.with.join(", ")
            ));
        }
        corpus.overlap = Some(overlap);
    }
    Ok(corpus)
}

/// What is known about the text behind statistics, for records.
pub(super) fn composition(statistics: &Statistics) -> Option<serde_json::Value> {
    serde_json::from_str(statistics.notes.get(COMPOSITION_NOTE)?).ok()
}

/// Writes statistics to a file.
pub(super) fn save(path: &Path, statistics: &Statistics, force: bool, source: &Source) -> Result<()> {
    store::save(path, statistics, force, &source.shards().collect::<Vec<_>>())
}

/// Reads statistics, ours or llama-imatrix's, and checks that they are of this model.
pub(super) fn load(path: &Path, source: &Source) -> Result<Statistics> {
    let mut statistics = store::load(path)?;
    statistics.adapt(source)?;
    Ok(statistics)
}
