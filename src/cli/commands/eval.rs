//! `tcq4 eval`: perplexity of a model on texts, and its divergence from a reference.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::eval_text;
use super::subject::Subject;
use crate::cli::args::EvalArgs;
use crate::cli::device::DeviceUse;
use crate::cli::{Outcome, Session, data};
use crate::convert::{Conversion, Marks, PlanSettings, is_tcq4, permutations};
use crate::corpus::Corpus;
use crate::error::{Error, EvalError, Result};
use crate::eval::{
    Cut, Estimate, LogitsOutput, LogitsReader, Measured, Options, Perplexity, Reference, Windows, check_same_tokens,
    measure, measure_alone, measure_and_save, saved_shape, windows_of_file,
};
use crate::gguf::Source;
use crate::quant::{Activations, InputRounding, Simulation};
use crate::tcq::Encoder;
use crate::util::atomic_file::check_target;
use crate::util::progress::Progress;
use crate::util::units::Bytes;

/// What was measured on one text.
#[derive(Serialize)]
pub(super) struct DataSet {
    pub(super) text: PathBuf,
    #[serde(flatten)]
    pub(super) measured: Measured,
}

/// Plain means over the texts.
#[derive(Serialize)]
pub(super) struct Average {
    pub(super) perplexity: f64,
    pub(super) error: f64,
    pub(super) kld: Option<Estimate>,
    pub(super) same_top: Option<Estimate>,
    pub(super) p_diff_rms: Option<Estimate>,
}

#[derive(Serialize)]
pub(super) struct Record<'a> {
    pub(super) model: &'a Path,
    /// Whether TCQ4 tensors were decoded into a temporary copy.
    pub(super) decoded: bool,
    /// What decoded them.
    pub(super) device: &'a DeviceUse,
    /// How activations were rounded.
    pub(super) simulate: Option<Activations>,
    /// Whether paths that the file asks for were passed over.
    pub(super) ignore_marks: bool,
    /// The model or the file of log-probabilities that was compared with.
    pub(super) reference: Option<&'a Path>,
    /// The file of log-probabilities that was written.
    pub(super) logits_out: Option<&'a Path>,
    #[serde(flatten)]
    pub(super) average: Average,
    pub(super) data_sets: Vec<DataSet>,
}

pub(in crate::cli) fn run(session: &Session, args: &EvalArgs) -> Outcome {
    check(args)?;
    let source = Source::open(&args.model)?;
    let simulation = args.simulate.map(|path| simulation(session, args, &source, path.into())).transpose()?;
    let device = session.device(&args.device)?;
    // A runtime that runs TCQ4 rounds activations its own way.
    let subject = Subject::of(session, &source, args.ngl, simulation.is_some(), device.gpu.as_deref())?;
    let options = Options { threads: session.threads(), simulation };
    let data_sets = match &args.logits {
        Some(path) => vec![against_file(session, args, &subject, options, path)?],
        None => over_texts(session, args, &subject, &options)?,
    };
    let record = Record {
        model: &args.model,
        decoded: subject.decoded,
        device: &device.use_,
        simulate: args.simulate.map(Into::into),
        ignore_marks: args.ignore_marks,
        reference: args.reference.as_deref().or(args.logits.as_deref()),
        logits_out: args.logits_out.as_deref(),
        average: average(&data_sets),
        data_sets,
    };
    session.printer.text(&eval_text::render(&record));
    session.printer.record("eval", record);
    Ok(0)
}

/// Refuses what can be refused before a model is loaded.
fn check(args: &EvalArgs) -> Result<()> {
    let usage = |message: String, hint: &str| Error::Usage { message, hint: Some(hint.into()) };
    if args.stride.is_some_and(|stride| stride >= args.ctx) {
        let message = format!("--stride is not smaller than the window of --ctx {}", args.ctx);
        return Err(usage(message, "half of --ctx is usual"));
    }
    if let Some(path) = &args.logits_out {
        if args.text.len() + args.dataset.len() > 1 {
            return Err(usage("--logits-out takes one text".into(), "run `tcq4 eval` once for each text"));
        }
        check_target(path, args.force, &[&args.model])?;
    }
    Ok(())
}

/// The tensors whose inputs are rounded, with their permutations: those of TCQ4, or with `--simulate-all` those that would become it.
fn simulation(session: &Session, args: &EvalArgs, source: &Source, path: Activations) -> Result<Simulation> {
    let mut permutations = permutations(source)?;
    let mut tensors: Vec<String> =
        source.tensors().iter().filter(|t| is_tcq4(source, t)).map(|t| t.name.clone()).collect();
    if tensors.is_empty() && args.simulate_all {
        let plan = Conversion::new(source, &PlanSettings { allow_requantize: true, ..PlanSettings::default() })?;
        tensors = plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.name.clone()).collect();
    }
    if tensors.is_empty() {
        return Err(EvalError::NothingToSimulate { path: args.model.clone() }.into());
    }
    let marks = if args.ignore_marks { Marks::default() } else { Marks::read(source)? };
    let tensors = tensors.into_iter().map(|name| {
        let own = marks.tensors.get(&name).copied().unwrap_or(path);
        let permutation = permutations.remove(&name);
        (name, InputRounding::new(own, permutation))
    });
    let simulation = Simulation::of(session.codec(Encoder::Default)?, tensors);
    if !marks.tensors.is_empty() {
        let (marked, all) = (marks.tensors.len(), simulation.len());
        session.progress.note(&format!("{marked} of {all} tensors are rounded as the file asks (see --ignore-marks)"));
    }
    Ok(simulation)
}

fn against_file(
    session: &Session,
    args: &EvalArgs,
    subject: &Subject,
    options: Options,
    path: &Path,
) -> Result<DataSet> {
    let mut reader = LogitsReader::open(path)?;
    let windows = windows_of_file(&reader, &subject.model, args.chunks.map(|n| n as usize))?;
    let reference = Reference::Logits(&mut reader);
    let measured = measure(&subject.model, reference, &windows, options, &session.progress)?;
    Ok(DataSet { text: path.to_path_buf(), measured })
}

fn over_texts(session: &Session, args: &EvalArgs, subject: &Subject, options: &Options) -> Result<Vec<DataSet>> {
    let texts = data::evaluation(session, &args.text, &args.dataset, &args.data, &args.model)?;
    let gpu = session.device(&args.device)?.gpu.as_deref();
    let reference =
        args.reference.as_deref().map(|path| Subject::open(session, path, args.ngl, false, gpu)).transpose()?;
    let cut = Cut { ctx: args.ctx, chunks: args.chunks.map(|n| n as usize), stride: args.stride };
    let (model, progress) = (&subject.model, &session.progress);
    let one = |(path, text): (PathBuf, Corpus)| {
        let windows = Windows::of(model, &text, cut)?;
        let measured = if let Some(reference) = &reference {
            check_same_tokens(model, &reference.model, &text, windows.tokens())?;
            measure(model, Reference::Model(&reference.model), &windows, options.clone(), progress)?
        } else {
            let perplexity = match &args.logits_out {
                Some(output) => save(session, args, subject, &windows, options.clone(), output)?,
                None => measure_alone(model, &windows, options.clone(), progress)?,
            };
            Measured { perplexity, divergence: None }
        };
        Ok(DataSet { text: path, measured })
    };
    texts.into_iter().map(one).collect()
}

fn save(
    session: &Session,
    args: &EvalArgs,
    subject: &Subject,
    windows: &Windows,
    options: Options,
    path: &Path,
) -> Result<Perplexity> {
    let bytes = saved_shape(&subject.model, windows).bytes().unwrap_or(u64::MAX);
    session.progress.note(&format!("{} will have {}", path.display(), Bytes(bytes)));
    let output = LogitsOutput { path, force: args.force };
    measure_and_save(&subject.model, windows, options, output, &session.progress)
}

fn average(data_sets: &[DataSet]) -> Average {
    let mean = |pick: &dyn Fn(&DataSet) -> Option<Estimate>| {
        let all: Option<Vec<Estimate>> = data_sets.iter().map(pick).collect();
        all.and_then(|all| Estimate::mean(&all))
    };
    let perplexity = mean(&|set| Some(set.measured.perplexity.estimate())).unwrap_or_default();
    Average {
        perplexity: perplexity.value,
        error: perplexity.error,
        kld: mean(&|set| Some(set.measured.divergence.as_ref()?.kld)),
        same_top: mean(&|set| Some(set.measured.divergence.as_ref()?.same_top)),
        p_diff_rms: mean(&|set| Some(set.measured.divergence.as_ref()?.p_diff_rms)),
    }
}
