//! `tcq4 analyze`: what quantisation does to a model, layer by layer.

use std::path::{Path, PathBuf};

use super::{analyze_output, analyze_text, statistics};
use crate::analysis::experts::Threshold;
use crate::analysis::record::ExpertRow;
use crate::analysis::{Choice, Job, Options, analyze};
use crate::calib::Statistics;
use crate::cli::args::{AnalyzeArgs, LookArgs};
use crate::cli::settings::{self, Setting};
use crate::cli::{Outcome, Session, data};
use crate::convert::{Conversion, PlanSettings};
use crate::corpus::SourceSpec;
use crate::error::{AnalysisError, Error, Result};
use crate::gguf::Source;
use crate::quant::recipe::RoundingRule;
use crate::quant::{Needs, Recipe};

/// Layers that the message about starved experts names.
const NAMED: usize = 5;

pub(in crate::cli) fn run(session: &Session, args: &AnalyzeArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let converted = args.converted.as_deref().map(Source::open).transpose()?;
    let plan = Conversion::new(&source, &PlanSettings { allow_requantize: true, ..PlanSettings::default() })?;
    let specs = data::sources(&args.calibration.calibration)?;
    let texts = data::files(&specs);
    let inputs: Vec<&Path> = source
        .shards()
        .chain(converted.iter().flat_map(Source::shards))
        .chain(args.stats.as_deref())
        .chain(texts.iter().map(PathBuf::as_path))
        .collect();
    if let Some(path) = &args.output {
        analyze_output::check(path, args.force, &inputs)?;
    }
    let has_statistics = args.stats.is_some() || !specs.is_empty();
    let setting = Setting::of(&source, has_statistics);
    let recipe = settings::recipe(&args.method, None, args.calibration.samples, setting)?;
    if !has_statistics {
        settings::check_needs(&Recipe { rounding: RoundingRule::Nearest, ..recipe.clone() }, Needs::NOTHING)?;
    }
    let statistics = evidence(session, &source, args, (&specs, recipe.samples))?;
    let settings = recipe.settings(settings::targets(&plan), None, session.codec(recipe.encoder)?);
    let job = Job {
        source: &source,
        plan: &plan,
        settings: &settings,
        statistics: statistics.as_ref(),
        converted: converted.as_ref(),
    };
    let analysis = analyze(job, &options(args), &session.progress)?;
    if let Some(path) = &args.output {
        analyze_output::write(path, args.force, &inputs, &analysis)?;
    }
    session.printer.text(&analyze_text::render(&analysis));
    session.printer.record("analyze", &analysis);
    check_experts(&args.look, &source, &analysis.experts)?;
    Ok(0)
}

/// The statistics, from a file or a run over text; none if neither was given.
fn evidence(
    session: &Session,
    source: &Source,
    args: &AnalyzeArgs,
    (specs, samples): (&[SourceSpec], u32),
) -> Result<Option<Statistics>> {
    let threshold = args.look.min_expert_tokens.is_some() || args.look.min_expert_share.is_some();
    match &args.stats {
        Some(path) => statistics::load(path, source).map(Some),
        None if args.calibration.calibration.is_empty() && threshold => Err(Error::Usage {
            message: "--min-expert-tokens and --min-expert-share need statistics of the activations".into(),
            hint: Some("pass --stats FILE, or text with -c".into()),
        }),
        None if args.calibration.calibration.is_empty() => Ok(None),
        None => {
            let keep = statistics::Keep::in_memory();
            statistics::measure(session, source, &args.calibration, specs, samples, &keep).map(Some)
        }
    }
}

fn options(args: &AnalyzeArgs) -> Options {
    let look = &args.look;
    let choice = if look.layer.is_empty() && look.tensor.is_empty() {
        Choice::Default
    } else {
        Choice::Only { layers: look.layer.iter().copied().collect(), names: look.tensor.iter().cloned().collect() }
    };
    let live = (!args.calibration.calibration.is_empty()).then(|| "measured in this run".to_string());
    Options {
        choice,
        output_rows: look.rows as usize,
        tau: look.tau,
        threshold: Threshold { tokens: look.min_expert_tokens, share: look.min_expert_share },
        statistics: args.stats.as_ref().map(|path| path.display().to_string()).or(live),
        ..Options::default()
    }
}

/// Fails if a threshold was asked for and experts stay below it.
fn check_experts(look: &LookArgs, source: &Source, rows: &[ExpertRow]) -> Result<()> {
    let starved: Vec<&ExpertRow> = rows.iter().filter(|row| !row.starved.is_empty()).collect();
    if starved.is_empty() || (look.min_expert_tokens.is_none() && look.min_expert_share.is_none()) {
        return Ok(());
    }
    let layer = |row: &&ExpertRow| format!("layer {}: {}", row.layer, analyze_text::numbers(&row.starved));
    let mut experts = starved.iter().take(NAMED).map(layer).collect::<Vec<_>>().join("; ");
    if starved.len() > NAMED {
        experts += &format!("; and {} further layers", starved.len() - NAMED);
    }
    let count = starved.iter().map(|row| row.starved.len()).sum();
    Err(AnalysisError::StarvedExperts { path: source.path().to_path_buf(), count, experts }.into())
}
