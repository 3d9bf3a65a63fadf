//! Statistics for the commands that need them: measured on the default or a given text, kept, read back.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use crate::calib::moments_store::MomentsOrigin;
use crate::calib::run::{COMPOSITION_NOTE, forget_checkpoint};
use crate::calib::{
    CalibrationOptions, InputMoments, MomentsRequest, Shard, Statistics, StatisticsPart, Summer, calibrate,
    calibrate_part, calibrate_with_moments, second_moments, store,
};
use crate::cli::args::CalibrationArgs;
use crate::cli::{Session, data};
use crate::convert::Stream;
use crate::corpus::chunks::{Chunks, Selection};
use crate::corpus::overlap::WORTH_A_WARNING;
use crate::corpus::{Corpus, Overlap, Purpose, SourceSpec, load as load_text};
use crate::error::Result;
use crate::eval::{Estimate, probe};
use crate::gguf::Source;
use crate::llama::{Model, ModelOptions, Rewriter};
use crate::quant::{Activations, InputRounding, Simulation, Transform};
use crate::tcq::Codec;
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
    model: RwLock<Model>,
    options: CalibrationOptions,
    /// Which chunks of the text run.
    shard: Shard,
    /// The path and what rounds activations, where the model is to become the quantised one.
    stream: Option<(Activations, Mutex<Simulation>)>,
}

impl<'a> Run<'a> {
    /// Reads the text and loads the model, for writing if `rounding` says how activations are to be rounded behind quantised weights.
    pub(super) fn open(
        session: &'a Session,
        source: &Source,
        args: &CalibrationArgs,
        specs: &[SourceSpec],
        default_samples: u32,
        keep: &Keep,
        rounding: Option<(Activations, Codec)>,
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
        let model_options = ModelOptions { gpu_layers: args.ngl, writable: rounding.is_some() };
        let model = RwLock::new(Model::load(source.first_shard(), &model_options)?);
        let options = CalibrationOptions {
            ctx: args.ctx,
            samples,
            selection: Selection::Seeded(args.seed),
            threads: session.threads(),
            checkpoint: keep.checkpoint.clone(),
            resume: keep.resume,
            ..CalibrationOptions::default()
        };
        let stream = rounding.map(|(path, codec)| (path, Mutex::new(Simulation::of(codec, []))));
        Ok(Self {
            session,
            fingerprint: store::fingerprint(source),
            corpus,
            model,
            options,
            shard: Shard::WHOLE,
            stream,
        })
    }

    /// The model as it is.
    fn model(&self) -> RwLockReadGuard<'_, Model> {
        self.model.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a device sum rows up.
    pub(super) fn on(mut self, summer: Summer) -> Self {
        self.options.summer = summer;
        self
    }

    /// Keeps no sample rows.
    pub(super) fn without_rows(mut self) -> Self {
        self.options.rows = 0;
        self
    }

    /// Runs only a part of the text; what has a `part` in its name, and second moments, are of that.
    pub(super) fn of_part(mut self, shard: Shard) -> Self {
        self.shard = shard;
        self
    }

    /// Seconds of one pass of the text: what it begins with, and every chunk. Measures channel statistics, or those second moments.
    pub(super) fn time(&self, requests: Option<&[MomentsRequest]>) -> Result<(f64, f64)> {
        let watch = Stopwatch { progress: &self.session.progress, phase: Mutex::default() };
        let options = CalibrationOptions { samples: 1, rows: 0, checkpoint: None, ..self.options.clone() };
        let started = Instant::now();
        match requests {
            None => drop(calibrate(&self.model(), &self.corpus, &self.fingerprint, &options, &watch)?),
            Some(requests) => {
                drop(second_moments(&self.model(), &self.corpus, &options, requests, Shard::WHOLE, None, &watch)?);
            }
        }
        let chunk = watch.phase.lock().map_or(0.0, |phase| phase.1.as_secs_f64());
        Ok(((started.elapsed().as_secs_f64() - chunk).max(0.0), chunk))
    }

    /// Measures the statistics. What comes of them is the same whether they take the way through a file or not.
    pub(super) fn statistics(&self) -> Result<Statistics> {
        let progress = &self.session.progress;
        Ok(calibrate(&self.model(), &self.corpus, &self.fingerprint, &self.options, progress)?.as_kept())
    }

    /// Measures the statistics of a part of the text.
    pub(super) fn statistics_part(&self) -> Result<StatisticsPart> {
        let Self { corpus, fingerprint, options, shard, session, .. } = self;
        calibrate_part(&self.model(), corpus, fingerprint, options, *shard, &session.progress)
    }

    /// Measures second moments, in a run of the text of their own.
    pub(super) fn second_moments(&self, requests: &[MomentsRequest]) -> Result<Vec<Option<InputMoments>>> {
        let mut simulation =
            self.stream.as_ref().map(|(_, simulation)| simulation.lock().unwrap_or_else(PoisonError::into_inner));
        let rewriter = simulation.as_deref_mut().filter(|simulation| simulation.rounds());
        let rewriter = rewriter.map(|simulation| simulation as &mut dyn Rewriter);
        let Self { corpus, options, session, .. } = self;
        second_moments(&self.model(), corpus, options, requests, self.shard, rewriter, &session.progress)
    }

    /// Measures both in one run of the text: what [`Self::statistics`] and [`Self::second_moments`] give.
    pub(super) fn both(&self, requests: &[MomentsRequest]) -> Result<(Statistics, Vec<Option<InputMoments>>)> {
        let Self { corpus, fingerprint, options, session, .. } = self;
        let model = self.model();
        let (statistics, moments) =
            calibrate_with_moments(&model, corpus, fingerprint, options, requests, &session.progress)?;
        Ok((statistics.as_kept(), moments))
    }

    /// What second moments of this run are known by.
    pub(super) fn origin(&self) -> Result<MomentsOrigin> {
        MomentsOrigin::new(&self.model(), &self.corpus, &self.fingerprint, &self.options, self.shard)
    }
}

impl Run<'_> {
    /// How far the model moves with each probe, on `count` chunks of the text, those first that the statistics have not seen.
    pub(super) fn probe(&self, probes: Vec<Simulation>, count: usize) -> Result<Vec<Estimate>> {
        let chunks = Chunks::of(&self.model(), &self.corpus, self.options.ctx)?;
        let (samples, selection) = (self.options.samples, self.options.selection);
        let seen = chunks.plan(samples, selection).summed;
        let mut chosen = chunks.plan(samples.saturating_add(count), selection).summed;
        chosen.retain(|chunk| !seen.contains(chunk));
        chosen.truncate(count);
        let missing = (count - chosen.len()).min(seen.len());
        chosen.extend((0..missing).map(|i| seen[i * seen.len() / missing]));
        let tokens: Vec<Vec<i32>> = chosen.into_iter().map(|chunk| chunks.get(chunk)).collect();
        probe(&self.model(), &tokens, probes, self.options.threads, &self.session.progress)
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

/// Names a model by its tensors.
pub(super) fn fingerprint(source: &Source) -> String {
    store::fingerprint(source)
}

impl Stream for Run<'_> {
    fn replace(&self, tensor: &str, offset: u64, bytes: &[u8]) -> Result<bool> {
        let mut model = self.model.write().unwrap_or_else(PoisonError::into_inner);
        model.replace(tensor, usize::try_from(offset).unwrap_or(usize::MAX), bytes)
    }

    fn round(&self, tensor: &str, transform: &Transform) {
        if let Some((path, simulation)) = &self.stream {
            let way = InputRounding::before(*path, Some(transform));
            simulation.lock().unwrap_or_else(PoisonError::into_inner).add(tensor.to_owned(), way);
        }
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
    Run::open(session, source, args, specs, default_samples, keep, None)?.statistics()
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
