//! `tcq4 compare`: which of several models predicts texts better, and whether the difference is more than chance.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::compare_text;
use super::subject::Subject;
use crate::cli::args::CompareArgs;
use crate::cli::printer::record_text;
use crate::cli::values::RuleArg;
use crate::cli::{Outcome, Session, data};
use crate::corpus::Corpus;
use crate::error::{CompareError, Error, Result};
use crate::eval::{
    CompareSettings, Comparison, Contender, Cut, Measured, Options, Reference, Rule, Score, Windows, compare, measure,
    measure_alone,
};
use crate::gguf::Source;
use crate::inspect::summarize;
use crate::llama::Model;
use crate::report::markdown;
use crate::util::atomic_file::{self, check_target, same_file};
use crate::util::progress::Progress;

/// What `--rule fixed` takes for a margin.
const MARGIN: f64 = 0.05;
/// Fewer chunks than this make an interval that is visibly too narrow.
const FEW_CHUNKS: u64 = 20;

#[derive(Serialize)]
struct Record<'a> {
    timestamp: &'a str,
    #[serde(flatten)]
    comparison: &'a Comparison,
}

/// A text with its name, and the tokens into which the first model cuts it.
struct Dataset {
    name: String,
    text: Corpus,
    tokens: Vec<i32>,
}

pub(in crate::cli) fn run(session: &Session, args: &CompareArgs) -> Outcome {
    let settings = settings(args)?;
    let sources = args.models.iter().map(|path| Source::open(path)).collect::<Result<Vec<_>>>()?;
    check_outputs(args, &sources)?;
    check_vocabularies(&sources)?;
    let mut models = contenders(&args.models, &sources);
    drop(sources);
    let mut datasets = datasets(session, args)?;
    let mut scores = Vec::new();
    let mut baseline = None;
    for model in &mut models {
        session.progress.note(&format!("{} ({} of {})", model.name, scores.len() + 1, args.models.len()));
        let subject = Subject::open(session, &model.path, args.ngl, false, None)?;
        model.decoded = subject.decoded;
        let reference = baseline.as_ref().map(|subject: &Subject| &subject.model);
        scores.push(score(session, args, (&subject.model, reference), &mut datasets, &model.path)?);
        if args.kld && baseline.is_none() {
            baseline = Some(subject);
        }
    }
    let names = datasets.into_iter().map(|dataset| dataset.name).collect();
    let found = compare(models, names, scores, settings)?;
    finish(session, args, &found)
}

/// Shows and writes what was found.
fn finish(session: &Session, args: &CompareArgs, found: &Comparison) -> Outcome {
    let timestamp = timestamp();
    if let Some(score) = found.detailed_results.values().flat_map(|models| models.values()).min_by_key(|s| s.chunks)
        && score.chunks < FEW_CHUNKS
    {
        session.progress.note(&format!("{} chunks are few: intervals come out too narrow", score.chunks));
    }
    let record = Record { timestamp: &timestamp, comparison: found };
    let inputs: Vec<&Path> = args.text.iter().chain(&args.models).map(PathBuf::as_path).collect();
    if let (Some(path), Some(json)) = (&args.output, record_text("compare", &record)) {
        atomic_file::write(path, args.force, &inputs, (json + "\n").as_bytes())?;
    }
    if let Some(path) = &args.markdown {
        atomic_file::write(path, args.force, &inputs, markdown::comparison(found, &timestamp).as_bytes())?;
    }
    session.printer.text(&compare_text::render(found));
    session.printer.record("compare", &record);
    Ok(0)
}

fn settings(args: &CompareArgs) -> Result<CompareSettings> {
    let rule = match (args.rule, args.margin) {
        (RuleArg::Fixed, margin) => Rule::Fixed { margin: margin.map_or(MARGIN, |margin| margin.0) },
        (RuleArg::Interval, None) => Rule::Interval,
        (RuleArg::Interval, Some(_)) => {
            return Err(Error::Usage {
                message: "--margin belongs to --rule fixed".into(),
                hint: Some("add --rule fixed, or leave --margin out".into()),
            });
        }
    };
    Ok(CompareSettings { seed: args.seed, confidence: args.confidence.0, resamples: args.resamples as usize, rule })
}

/// Refuses outputs that cannot be written, before any model runs.
fn check_outputs(args: &CompareArgs, sources: &[Source]) -> Result<()> {
    let mut inputs: Vec<&Path> = sources.iter().flat_map(Source::shards).collect();
    inputs.extend(args.text.iter().map(PathBuf::as_path));
    for output in args.output.iter().chain(&args.markdown) {
        check_target(output, args.force, &inputs)?;
    }
    match (&args.output, &args.markdown) {
        (Some(output), Some(markdown)) if output == markdown || same_file(output, markdown) => Err(Error::Usage {
            message: format!("{} is one file, for two outputs", output.display()),
            hint: Some("choose another name for one of them".into()),
        }),
        _ => Ok(()),
    }
}

/// Refuses vocabularies of different size, before any model runs.
fn check_vocabularies(sources: &[Source]) -> Result<()> {
    let size = |source: &Source| source.metadata().get_array("tokenizer.ggml.tokens").map(|tokens| tokens.len());
    for source in &sources[1..] {
        if let (Some(expected), Some(found)) = (size(&sources[0]), size(source))
            && expected != found
        {
            let (model, baseline) = (source.path().to_path_buf(), sources[0].path().to_path_buf());
            let (expected, found) = (expected as usize, found as usize);
            return Err(CompareError::Vocabulary { model, baseline, expected, found }.into());
        }
    }
    Ok(())
}

fn contenders(paths: &[PathBuf], sources: &[Source]) -> Vec<Contender> {
    let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let names = distinct_names(paths, stem);
    let contender = |((name, path), source): ((String, &PathBuf), &Source)| {
        let summary = summarize(source);
        let (bytes, bits_per_weight) = (summary.file_bytes, summary.bits_per_weight);
        Contender { name, path: path.clone(), bytes, bits_per_weight, decoded: false }
    };
    names.into_iter().zip(paths).zip(sources).map(contender).collect()
}

fn datasets(session: &Session, args: &CompareArgs) -> Result<Vec<Dataset>> {
    let texts = data::evaluation(session, &args.text, &args.dataset, &args.data, &args.models[0])?;
    let (paths, texts): (Vec<PathBuf>, Vec<Corpus>) = texts.into_iter().unzip();
    let file_name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let names = distinct_names(&paths, file_name).into_iter().zip(texts);
    Ok(names.map(|(name, text)| Dataset { name, text, tokens: Vec::new() }).collect())
}

/// Short names of files, longer ones where the short ones are not distinct.
fn distinct_names(paths: &[PathBuf], short: impl Fn(&Path) -> Option<String>) -> Vec<String> {
    let whole = |path: &PathBuf| path.display().to_string();
    let short: Vec<String> = paths.iter().map(|path| short(path).unwrap_or_else(|| whole(path))).collect();
    let is_unique = |names: &[String], at: usize| names.iter().filter(|name| **name == names[at]).count() == 1;
    let longer: Vec<String> =
        (0..paths.len()).map(|at| if is_unique(&short, at) { short[at].clone() } else { whole(&paths[at]) }).collect();
    let numbered = |at: usize| match is_unique(&longer, at) {
        true => longer[at].clone(),
        false => format!("{} ({})", longer[at], longer[..=at].iter().filter(|name| **name == longer[at]).count()),
    };
    (0..paths.len()).map(numbered).collect()
}

/// Scores one model on every data set, beside the reference if there is one; the first model's tokens are kept, and those of the others compared with them.
fn score(
    session: &Session,
    args: &CompareArgs,
    (model, reference): (&Model, Option<&Model>),
    datasets: &mut [Dataset],
    path: &Path,
) -> Result<Vec<Score>> {
    let cut = Cut { ctx: args.ctx, chunks: args.chunks.map(|n| n as usize), stride: None };
    let options = Options { threads: session.threads(), ..Options::default() };
    let mut scores = Vec::new();
    for dataset in datasets {
        let tokens = dataset.text.tokenize(model)?;
        if dataset.tokens.is_empty() {
            dataset.tokens = tokens;
        } else {
            check_tokens(path, &args.models[0], dataset, &tokens)?;
        }
        let windows = Windows::of(model, &dataset.text, cut)?;
        let (options, progress) = (options.clone(), &session.progress);
        scores.push(Score::from(match reference {
            Some(reference) => measure(model, Reference::Model(reference), &windows, options, progress)?,
            None => Measured { perplexity: measure_alone(model, &windows, options, progress)?, divergence: None },
        }));
    }
    Ok(scores)
}

fn check_tokens(model: &Path, baseline: &Path, dataset: &Dataset, tokens: &[i32]) -> Result<()> {
    if dataset.tokens == tokens {
        return Ok(());
    }
    let common = dataset.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
    Err(CompareError::Tokens {
        model: model.to_path_buf(),
        baseline: baseline.to_path_buf(),
        dataset: dataset.name.clone(),
        expected: dataset.tokens.len(),
        found: tokens.len(),
        at: common,
    }
    .into())
}

/// The time of day in UTC; that of `SOURCE_DATE_EPOCH` where it is set, so that two runs can write the same bytes.
fn timestamp() -> String {
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let time = fixed.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let time =
        time.filter(|time| time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|d| d.as_secs() < 253_402_300_800));
    humantime::format_rfc3339_seconds(time.unwrap_or_else(SystemTime::now)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_short_as_they_can_be_told_apart() {
        let names = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            distinct_names(&paths, |path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        };
        assert_eq!(names(&["x/a.gguf", "x/b.gguf"]), ["a", "b"]);
        assert_eq!(names(&["x/a.gguf", "y/a.gguf", "c.gguf"]), ["x/a.gguf", "y/a.gguf", "c"]);
        assert_eq!(names(&["a.gguf", "a.gguf"]), ["a.gguf (1)", "a.gguf (2)"]);
        assert_eq!(names(&["/"]), ["/"]);
    }
}
