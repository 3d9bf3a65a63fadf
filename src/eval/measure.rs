//! Runs a model over the windows of a text, alone, beside a reference model, or against a file of log-probabilities, and sums up what the
//! logits say. One window at a time: two models need the memory of both and the logits of one window each, and no disk.

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::base_file::{LogitsReader, LogitsShape, LogitsWriter};
use super::divergence::{Divergence, DivergenceSums};
use super::perplexity::{Perplexity, Sums};
use super::softmax::{Compared, compare, compare_stored, negative_log_likelihood};
use super::windows::{Window, Windows};
use crate::corpus::Corpus;
use crate::error::{EvalError, ModelError};
use crate::llama::{Context, ContextOptions, Logits, Model, Watch};
use crate::quant::Simulation;
use crate::util::progress::{Progress, Unit};
use crate::{Error, Result};

/// Tokens of one graph at most, as in llama.cpp's tools.
const UBATCH: u32 = 512;

/// How a model is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Threads; 0 takes all.
    pub threads: u32,
    /// What happens to the model's activations; never to those of a reference.
    pub simulation: Option<Simulation>,
}

/// What a model is compared with.
#[derive(Debug)]
pub enum Reference<'a> {
    /// Another model with the same vocabulary, run beside it.
    Model(&'a Model),
    /// The log-probabilities of another model.
    Logits(&'a mut LogitsReader),
}

/// What was measured on one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The model's perplexity.
    #[serde(flatten)]
    pub perplexity: Perplexity,
    /// The model against the reference, where there is one.
    pub divergence: Option<Divergence>,
}

/// Measures the perplexity of `model`.
///
/// # Errors
/// [`ModelError::LogitsNotFinite`], what llama.cpp refuses, and [`Error::Interrupted`].
pub fn measure_alone(
    model: &Model,
    windows: &Windows,
    options: Options,
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let mut run = Run::new(model, windows, options)?;
    run.each("perplexity", windows, progress, |logits, window| {
        let rows = logits.par_chunks_exact(model.vocab_size()).zip(window.targets());
        Ok(rows.map(|(row, &target)| negative_log_likelihood(row, target as usize)).collect())
    })
}

/// Measures the perplexity of `model` and writes its log-probabilities to `output`, for others to be compared with.
///
/// # Errors
/// As [`measure_alone`]; what the output refuses.
pub fn measure_and_save(
    model: &Model,
    windows: &Windows,
    options: Options,
    output: LogitsOutput<'_>,
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let shape = saved_shape(model, windows);
    let inputs = [model.path()];
    let mut writer = LogitsWriter::create(output.path, output.force, &inputs, shape, windows.tokens())?;
    let mut run = Run::new(model, windows, options)?;
    let result = run.each("perplexity", windows, progress, |logits, window| {
        writer.write_chunk(&logits[..shape.rows() * shape.vocab], window.targets())
    })?;
    writer.commit()?;
    Ok(result)
}

/// A file of log-probabilities to write.
#[derive(Debug, Clone, Copy)]
pub struct LogitsOutput<'a> {
    /// The file.
    pub path: &'a Path,
    /// Whether an existing one is replaced.
    pub force: bool,
}

/// How much [`measure_and_save`] writes.
pub fn saved_shape(model: &Model, windows: &Windows) -> LogitsShape {
    LogitsShape { ctx: windows.cut().ctx as usize, vocab: model.vocab_size(), chunks: windows.len() }
}

/// The windows of a file of log-probabilities, for `model` to run over.
///
/// # Errors
/// [`EvalError::Vocabulary`] if the file is of another vocabulary.
pub fn windows_of_file(reader: &LogitsReader, model: &Model, chunks: Option<usize>) -> Result<Windows> {
    let (expected, found) = (reader.shape().vocab, model.vocab_size());
    if expected != found {
        let (model, reference) = (model.path().to_path_buf(), reader.path().to_path_buf());
        return Err(EvalError::Vocabulary { model, reference, expected, found }.into());
    }
    Ok(Windows::of_file(reader, model, chunks))
}

/// Checks that `model` cuts a text into the tokens `expected` of `reference`.
///
/// # Errors
/// [`EvalError::Vocabulary`], [`EvalError::Tokens`].
pub fn check_same_tokens(model: &Model, reference: &Model, text: &Corpus, expected: &[i32]) -> Result<()> {
    let (path, of) = (model.path().to_path_buf(), reference.path().to_path_buf());
    let sizes = (reference.vocab_size(), model.vocab_size());
    if sizes.0 != sizes.1 {
        return Err(EvalError::Vocabulary { model: path, reference: of, expected: sizes.0, found: sizes.1 }.into());
    }
    let found = text.tokenize(reference)?;
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    match differs.or_else(|| (found.len() != expected.len()).then(|| found.len().min(expected.len()))) {
        Some(at) => Err(EvalError::Tokens { model: path, reference: of, at }.into()),
        None => Ok(()),
    }
}

/// Measures `model` against `reference`.
///
/// # Errors
/// As [`measure_alone`]; log-probabilities that are none.
pub fn measure(
    model: &Model,
    reference: Reference<'_>,
    windows: &Windows,
    options: Options,
    progress: &dyn Progress,
) -> Result<Measured> {
    let vocab = model.vocab_size();
    let mut sums = DivergenceSums::default();
    let threads = options.threads;
    let mut run = Run::new(model, windows, options)?;
    let mut take = |rows: Vec<Compared>| {
        sums.add_chunk(&rows);
        if sums.is_finite() { Ok(rows.iter().map(|row| row.nll).collect()) } else { Ok(vec![f64::NAN]) }
    };
    let perplexity = match reference {
        Reference::Model(base) => {
            let mut base = Run::new(base, windows, Options { threads, simulation: None })?;
            run.each("KL divergence", windows, progress, |logits, window| {
                let rows = logits.par_chunks_exact(vocab).zip(base.forward(window)?.par_chunks_exact(vocab));
                take(rows.zip(window.targets()).map(|((row, base), &t)| compare(row, base, t as usize)).collect())
            })?
        }
        Reference::Logits(reader) => run.each("KL divergence", windows, progress, |logits, window| {
            let stored = reader.next_chunk()?;
            let rows = logits.par_chunks_exact(vocab).zip(&stored).zip(window.targets());
            take(rows.map(|((row, base), &target)| compare_stored(row, base, target as usize)).collect())
        })?,
    };
    let divergence = sums.divergence(&run.sums.all, windows.cut());
    Ok(Measured { perplexity, divergence: Some(divergence) })
}

/// A model at work.
struct Run<'m> {
    model: &'m Model,
    context: Context<'m>,
    simulation: Option<Simulation>,
    sums: Sums,
}

impl<'m> Run<'m> {
    fn new(model: &'m Model, windows: &Windows, options: Options) -> Result<Self> {
        let ctx = windows.cut().ctx;
        let Options { threads, simulation } = options;
        let (ubatch, observe) = (ctx.min(UBATCH), simulation.is_some());
        let context = Context::new(model, &ContextOptions { ubatch, threads, observe, ..ContextOptions::new(ctx) })?;
        Ok(Self { model, context, simulation, sums: Sums::default() })
    }

    /// The logits from position `window.first` on, a row each.
    fn forward(&mut self, window: &Window) -> Result<&[f32]> {
        self.context.clear();
        let logits = Logits::From(window.first);
        match &mut self.simulation {
            None => self.context.decode(&window.tokens, logits)?,
            Some(simulation) => {
                let watch = Watch { observer: None, rewriter: Some(simulation) };
                self.context.decode_watched(&window.tokens, logits, watch)?;
            }
        }
        Ok(self.context.logits())
    }

    /// Runs all windows; `score` gives the negative log-likelihoods of each one's targets.
    fn each(
        &mut self,
        label: &str,
        windows: &Windows,
        progress: &dyn Progress,
        mut score: impl FnMut(&[f32], &Window) -> Result<Vec<f64>>,
    ) -> Result<Perplexity> {
        progress.begin(label, windows.total(), Unit::Tokens);
        for index in 0..windows.len() {
            if progress.interrupted() {
                return Err(Error::Interrupted);
            }
            let window = windows.get(index);
            let scores = score(self.forward(&window)?, &window)?;
            self.sums.add_chunk(scores.into_iter());
            if !self.sums.all.sum.is_finite() {
                let path = self.model.path().to_path_buf();
                return Err(ModelError::LogitsNotFinite { path, chunk: index }.into());
            }
            progress.advance(window.tokens.len() as u64);
        }
        progress.end();
        Ok(self.sums.clone().perplexity(windows.cut()))
    }
}
