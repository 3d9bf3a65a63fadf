//! The calibration run: chunk after chunk through the model, with checkpoints on the way. What is measured, `collector` decides.
//!
//! The statistics of a run depend on the model, the text and the settings, not on the number of threads: each chunk is summed in token order,
//! chunks in text order.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::collector::{Collector, Wanted};
use super::container::Kept;
use super::hessians::Hessians;
use super::input_moments::{InputMoments, MomentsRequest};
use super::part::{Origin, StatisticsPart};
use super::resume;
use super::stats::Statistics;
use super::summer::Summer;
use crate::corpus::chunks::{ChunkPlan, Chunks, Selection};
use crate::corpus::{Composition, Corpus};
use crate::llama::{Capture, Context, ContextOptions, Model, Node, Observer};
use crate::util::progress::{Progress, Unit};
use crate::util::shard::Shard;
use crate::{Error, Result};

/// The note of the statistics that holds the [`Composition`] of the text, as JSON.
pub const COMPOSITION_NOTE: &str = "text.composition";

/// Tokens of one graph at most: what llama.cpp's own tools use.
pub(super) const UBATCH: u32 = 512;

/// The fractional part of the golden ratio: multiples of it fill an interval evenly.
const TURN: f64 = 0.618_033_988_749_895;

/// How a calibration run is done.
#[derive(Debug, Clone)]
pub struct CalibrationOptions {
    /// Tokens of a chunk.
    pub ctx: u32,
    /// Chunks to sum up, at most.
    pub samples: usize,
    /// Which chunks, when the text has more.
    pub selection: Selection,
    /// Threads; 0 takes all.
    pub threads: u32,
    /// Sample rows to keep of each input; 0 keeps none.
    pub rows: usize,
    /// Whether `output.weight` is calibrated too.
    pub with_output: bool,
    /// Where to keep what is done so far; `None` keeps nothing.
    pub checkpoint: Option<PathBuf>,
    /// Whether to go on from that checkpoint, if there is one.
    pub resume: bool,
    /// How often to write it.
    pub checkpoint_every: Duration,
    /// Who sums rows up; it changes no bit of the result.
    pub summer: Summer,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        Self {
            ctx: 512,
            samples: 128,
            selection: Selection::Seeded(42),
            threads: 0,
            rows: 128,
            with_output: false,
            checkpoint: None,
            resume: false,
            checkpoint_every: Duration::from_secs(60),
            summer: Summer::default(),
        }
    }
}

/// One chunk of the run: its index in the text and what to capture in it.
struct Step {
    chunk: usize,
    wanted: Wanted,
}

/// Runs the text through the model and sums up the inputs of its weights. `fingerprint` names the model ([`super::store::fingerprint`]).
///
/// # Errors
/// If the text is too short, the model computes NaN or infinity, a checkpoint cannot be continued, llama.cpp refuses something, or the user
/// interrupts ([`Error::Interrupted`]; what is done is in the checkpoint then).
pub fn calibrate(
    model: &Model,
    corpus: &Corpus,
    fingerprint: &str,
    options: &CalibrationOptions,
    progress: &dyn Progress,
) -> Result<Statistics> {
    Ok(run(model, corpus, fingerprint, (options, Shard::WHOLE), None, progress)?.finish())
}

/// One part of such a run: every `shard.count`th of its chunks. All parts merge into the statistics of the run, bit for bit
/// ([`StatisticsPart::merge`]).
///
/// # Errors
/// As [`calibrate`].
pub fn calibrate_part(
    model: &Model,
    corpus: &Corpus,
    fingerprint: &str,
    options: &CalibrationOptions,
    shard: Shard,
    progress: &dyn Progress,
) -> Result<StatisticsPart> {
    run(model, corpus, fingerprint, (options, shard), None, progress)
}

/// As [`calibrate`], and the second moments of [`super::second_moments`] from the same run of the text: the same bits as of two runs. There is no
/// checkpoint of second moments, so `options` must have none.
///
/// # Errors
/// As the two.
pub fn calibrate_with_moments(
    model: &Model,
    corpus: &Corpus,
    fingerprint: &str,
    options: &CalibrationOptions,
    requests: &[MomentsRequest],
    progress: &dyn Progress,
) -> Result<(Statistics, Vec<Option<InputMoments>>)> {
    let options = CalibrationOptions { checkpoint: None, ..options.clone() };
    let mut hessians = Hessians::new(requests, options.summer.clone());
    let whole = (&options, Shard::WHOLE);
    let part = run(model, corpus, fingerprint, whole, Some(&mut hessians), progress)?;
    Ok((part.finish(), hessians.finish()))
}

fn run(
    model: &Model,
    corpus: &Corpus,
    fingerprint: &str,
    (options, shard): (&CalibrationOptions, Shard),
    mut hessians: Option<&mut Hessians<'_>>,
    progress: &dyn Progress,
) -> Result<StatisticsPart> {
    let chunks = Chunks::of(model, corpus, options.ctx)?;
    let plan = chunks.plan(options.samples, options.selection);
    let composition = Composition::new(corpus, &chunks, &plan);
    tell(&composition, &chunks, options.samples, progress);
    let name = run_name(corpus, fingerprint, options, &plan);
    let steps: Vec<Step> =
        steps(&plan, options).into_iter().enumerate().filter(|(at, _)| shard.has(*at)).map(|(_, step)| step).collect();
    let part_name = if shard == Shard::WHOLE { name.clone() } else { format!("{name}, part {shard}") };
    let (collector, done) = begin(options, &part_name)?;
    let mut collector = collector.with(options.summer.clone());
    let mut context = context(model, options)?;
    let mut checkpoint = Checkpoint { options, name: &part_name, written: Instant::now() };
    progress.begin("calibrate", (steps.len() * options.ctx as usize) as u64, Unit::Tokens);
    progress.advance((done * options.ctx as usize) as u64);
    for (index, step) in steps.iter().enumerate().skip(done) {
        if progress.interrupted() {
            checkpoint.write(index, &collector)?;
            return Err(Error::Interrupted);
        }
        checkpoint.write_if_due(index, &collector)?;
        context.clear();
        collector.begin_chunk(step.wanted.clone());
        let tokens = chunks.get(step.chunk);
        match hessians.as_deref_mut().filter(|_| step.wanted.sums) {
            Some(hessians) => {
                hessians.begin_chunk(index == 0, true);
                let mut both = Both { collector: &mut collector, hessians, wanted: HashMap::new() };
                context.decode_observed(&tokens, &mut both)?;
            }
            None => context.decode_observed(&tokens, &mut collector)?,
        }
        progress.advance(u64::from(options.ctx));
    }
    progress.end();
    let mut origin = origin(corpus, fingerprint, (options, shard), &plan, name);
    let composition = serde_json::to_string(&composition).unwrap_or_default();
    origin.notes.push((COMPOSITION_NOTE.to_owned(), composition));
    let (entries, groups) = collector.into_parts();
    Ok(StatisticsPart { origin, kept: Kept { entries, groups } })
}

/// Two observers of one run.
struct Both<'a, 'h> {
    collector: &'a mut Collector,
    hessians: &'a mut Hessians<'h>,
    /// Which of the two wanted the input of a weight.
    wanted: HashMap<String, (bool, bool)>,
}

impl Observer for Both<'_, '_> {
    fn begin_graph(&mut self, tokens: usize) {
        self.collector.begin_graph(tokens);
        self.hessians.begin_graph(tokens);
        self.wanted.clear();
    }

    fn wants(&mut self, node: &Node<'_>) -> bool {
        let (collector, hessians) = (self.collector.wants(node), self.hessians.wants(node));
        self.wanted.insert(node.weight.to_owned(), (collector, hessians));
        collector || hessians
    }

    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        let (collector, hessians) = self.wanted.get(node.weight).copied().unwrap_or_default();
        if collector {
            self.collector.observe(node, input)?;
        }
        if hessians { self.hessians.observe(node, input) } else { Ok(()) }
    }
}

/// A context that runs one chunk after the other.
pub(super) fn context<'m>(model: &'m Model, options: &CalibrationOptions) -> Result<Context<'m>> {
    let options = ContextOptions {
        batch: options.ctx,
        ubatch: options.ctx.min(UBATCH),
        threads: options.threads,
        observe: true,
        ..ContextOptions::new(options.ctx)
    };
    Context::new(model, &options)
}

/// Says what goes in.
fn tell(composition: &Composition, chunks: &Chunks, samples: usize, progress: &dyn Progress) {
    for line in composition.lines() {
        progress.note(&line);
    }
    if let Some((name, few, all)) = chunks.shortage(samples) {
        progress.note(&format!("{name} has only {few} chunks: {all} chunks in all, so that the weights hold"));
    }
}

/// Removes the checkpoint of a run whose results are safe.
///
/// # Errors
/// If there is one and it cannot be removed.
pub fn forget_checkpoint(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}

/// Everything that the result depends on, in a line.
fn run_name(corpus: &Corpus, fingerprint: &str, options: &CalibrationOptions, plan: &ChunkPlan) -> String {
    let CalibrationOptions { ctx, rows, with_output, .. } = options;
    let (text, ubatch) = (corpus.hash(), (*ctx).min(UBATCH));
    format!("model {fingerprint}, text {text}, ctx {ctx}, ubatch {ubatch}, rows {rows}, output {with_output}, {plan:?}")
}

fn begin(options: &CalibrationOptions, name: &str) -> Result<(Collector, usize)> {
    match &options.checkpoint {
        Some(path) if options.resume && path.exists() => resume::load(path, name, options.with_output),
        _ => Ok((Collector::new(options.with_output), 0)),
    }
}

fn origin(
    corpus: &Corpus,
    fingerprint: &str,
    (options, shard): (&CalibrationOptions, Shard),
    plan: &ChunkPlan,
    run: String,
) -> Origin {
    let notes = [
        ("selection", format!("{:?}", options.selection)),
        ("text.xxh3", corpus.hash()),
        ("text.samples", corpus.samples.to_string()),
        ("text.duplicates", corpus.duplicates.to_string()),
    ];
    Origin {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        shard,
        run,
        chunk_count: plan.summed.len() as u32,
        chunk_size: options.ctx,
        datasets: corpus.sources.clone(),
        fingerprint: fingerprint.to_owned(),
        text: corpus.hash(),
        rows_held_out: !plan.held_out.is_empty(),
        notes: notes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// The chunks in the order in which they run: those to sum up, then those held out.
fn steps(plan: &ChunkPlan, options: &CalibrationOptions) -> Vec<Step> {
    let held_out: &[usize] = if options.rows == 0 { &[] } else { &plan.held_out };
    let sampled = if held_out.is_empty() { plan.summed.len() } else { held_out.len() };
    let rows = |i: usize| spread(options.rows, sampled, i, options.ctx as usize);
    let summed = plan.summed.iter().enumerate().map(|(i, &chunk)| {
        let rows = if held_out.is_empty() { rows(i) } else { Vec::new() };
        (chunk, true, rows)
    });
    let rest = held_out.iter().enumerate().map(|(i, &chunk)| (chunk, false, rows(i)));
    let mut rows_before = 0;
    let step = |(chunk, sums, rows): (usize, bool, Vec<usize>)| {
        let before = rows_before;
        rows_before += rows.len();
        Step { chunk, wanted: Wanted { sums, rows, rows_before: before } }
    };
    summed.chain(rest).map(step).collect()
}

/// The share of `rows` positions that falls to chunk `i` of `chunks`, spread evenly over its `ctx` tokens, shifted from chunk to chunk so that
/// chunks with one row each do not all take the same position. Never the first token: what follows BOS alone is like nothing else.
fn spread(rows: usize, chunks: usize, i: usize, ctx: usize) -> Vec<usize> {
    let share = (rows * (i + 1) / chunks - rows * i / chunks).min(ctx.saturating_sub(1));
    let phase = (i as f64 * TURN).fract();
    (0..share).map(|k| 1 + ((k as f64 + phase) * (ctx - 1) as f64 / share as f64) as usize).collect()
}

/// Writes checkpoints now and then.
struct Checkpoint<'a> {
    options: &'a CalibrationOptions,
    name: &'a str,
    written: Instant,
}

impl Checkpoint<'_> {
    fn write(&mut self, done: usize, collector: &Collector) -> Result<()> {
        if let Some(path) = &self.options.checkpoint
            && done > 0
        {
            resume::save(path, self.name, done, collector)?;
        }
        self.written = Instant::now();
        Ok(())
    }

    fn write_if_due(&mut self, done: usize, collector: &Collector) -> Result<()> {
        if self.written.elapsed() < self.options.checkpoint_every {
            return Ok(());
        }
        self.write(done, collector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_rows_are_spread_and_never_first() {
        let total: usize = (0..5).map(|i| spread(128, 5, i, 512).len()).sum();
        assert_eq!(total, 128);
        for (chunks, i) in [(5, 0), (128, 77), (300, 299), (1, 0)] {
            let positions = spread(128, chunks, i, 512);
            assert!(positions.is_sorted_by(|a, b| a < b));
            assert!(positions.iter().all(|p| (1..512).contains(p)));
        }
        assert_eq!(spread(128, 1, 0, 4), [1, 2, 3]);
        assert!(spread(128, 1, 0, 1).is_empty());
    }
}
