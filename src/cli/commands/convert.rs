//! `tcq4 convert`: the main job in one go.

use super::moments::{self, Kept, MEMORY, Moments};
use super::produce::{Choice, Evidence, Production};
use super::statistics;
use crate::calib::Statistics;
use crate::cli::args::{ConvertArgs, RoundingArgs, SequentialArgs};
use crate::cli::values::{Preset, RoundingArg};
use crate::cli::{Outcome, Session, data, settings};
use crate::convert::{Checkpoint, Compensation, Conversion, Sequential, layer_batch};
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::model::Arch;
use crate::quant::Activations;
use crate::quant::rounding::Rounding;
use crate::tcq::{Codec, Encoder};

pub(in crate::cli) fn run(session: &Session, args: &ConvertArgs) -> Outcome {
    check(args)?;
    let source = Source::open(&args.model)?;
    let specs = data::sources(&args.calibration.calibration)?;
    let texts = data::files(&specs);
    let production = Production {
        session,
        source: &source,
        output: &args.output,
        args: &args.production,
        inputs: &texts,
        moments: moments_memory(&args.rounding),
    };
    let Some(plan) = production.plan()? else { return Ok(0) };
    if let Some(path) = &args.stats {
        settings::check_side_output(path, &args.output, args.production.out.force, &source, &texts)?;
    }
    if let Some(path) = args.second_moments.as_ref().filter(|path| !path.exists() || args.production.out.force) {
        settings::check_side_output(path, &args.output, args.production.out.force, &source, &texts)?;
    }
    plan.check_encoders()?; // before the long part
    if args.sequential.sequential {
        checkpoint(args).check(args.production.out.force)?;
    }
    let has_experts = Arch::from_metadata(source.metadata()).experts > 0;
    let samples = samples(args.rounding.preset, has_experts);
    let keep = statistics::Keep::in_memory();
    let behind = behind(session, args)?;
    let run = statistics::Run::open(session, &source, &args.calibration, &specs, samples, &keep, behind)?;
    let (statistics, moments) = measure(session, args, &run, (&source, &plan))?;
    if let Some(path) = &args.stats {
        statistics::save(path, &statistics, args.production.out.force, &source)?;
    }
    let statistics_file = args.stats.as_ref().map(|path| path.display().to_string());
    let sequential = |memory| sequential(args, (&source, &plan), memory, &run);
    let choice = choice(&args.rounding, moments.as_ref(), sequential);
    production.finish(&plan, Evidence { statistics: Some(statistics), statistics_file, orders: None, choice })
}

/// The statistics, and where second moments come from if they are needed.
fn measure<'a>(
    session: &Session,
    args: &ConvertArgs,
    run: &'a statistics::Run<'a>,
    model: (&Source, &Conversion),
) -> Result<(Statistics, Option<Moments<'a>>)> {
    let Some(memory) = moments_memory(&args.rounding) else { return Ok((run.statistics()?, None)) };
    let (statistics, moments) = match &args.second_moments {
        None if args.sequential.sequential => (run.statistics()?, Moments::measured_anew(run)),
        None => moments::measure(run, model, memory)?,
        Some(path) => {
            let kept = Kept { path, force: args.production.out.force, memory };
            let (statistics, file) = kept.measure(session, run, model)?;
            (statistics, Moments::File(file))
        }
    };
    Ok((statistics, Some(moments)))
}

/// Chunks of text where `-n` does not say.
fn samples(preset: Preset, has_experts: bool) -> u32 {
    match preset {
        Preset::Fast => 8,
        _ if has_experts => statistics::MANY_SAMPLES,
        Preset::Balanced => statistics::FEW_SAMPLES,
        Preset::Best => 64,
    }
}

/// Refuses options that do not go together.
fn check(args: &ConvertArgs) -> Result<()> {
    if rounding(&args.rounding) != RoundingArg::Nearest && args.production.method.encoder == Encoder::Parity {
        return Err(Error::Usage {
            message: "GPTQ and greedy rounding choose other codes than `--encoder parity` stands for".into(),
            hint: Some("leave out --encoder parity, or pass --rounding nearest".into()),
        });
    }
    if args.sequential.sequential && rounding(&args.rounding) != RoundingArg::Gptq {
        return Err(Error::Usage {
            message: "--sequential measures what only GPTQ rounds by".into(),
            hint: Some("add --rounding gptq or --preset best".into()),
        });
    }
    if args.sequential.sequential && args.second_moments.is_some() {
        return Err(Error::Usage {
            message:
                "--second-moments keeps those of the model before it is quantised, and --sequential measures others"
                    .into(),
            hint: Some("leave one of them out".into()),
        });
    }
    if args.second_moments.is_some() && rounding(&args.rounding) != RoundingArg::Gptq {
        return Err(Error::Usage {
            message: "--second-moments is of no use without GPTQ".into(),
            hint: Some("pass --rounding gptq or --preset best, or leave it out".into()),
        });
    }
    Ok(())
}

/// Where a sequential conversion keeps what is done.
fn checkpoint(args: &ConvertArgs) -> Checkpoint {
    let mut folder = args.output.as_os_str().to_os_string();
    folder.push(".partial");
    Checkpoint { folder: folder.into(), resume: args.sequential.resume }
}

/// How activations are rounded behind quantised weights, in a sequential conversion.
fn behind(session: &Session, args: &ConvertArgs) -> Result<Option<(Activations, Codec)>> {
    let method = &args.production.method;
    args.sequential.sequential.then(|| Ok((method.activations, session.codec(method.encoder)?))).transpose()
}

fn rounding(args: &RoundingArgs) -> RoundingArg {
    args.rounding.unwrap_or(match args.preset {
        Preset::Best => RoundingArg::Gptq,
        Preset::Fast | Preset::Balanced => RoundingArg::Nearest,
    })
}

/// How the conversion is done in sequence, if it is.
fn sequential<'a>(
    args: &ConvertArgs,
    (source, plan): (&Source, &Conversion),
    memory: u64,
    stream: &'a statistics::Run<'_>,
) -> Option<Sequential<'a>> {
    let SequentialArgs { sequential, layer_batch: blocks, .. } = args.sequential;
    let blocks = || blocks.unwrap_or_else(|| layer_batch(source, plan, memory));
    sequential.then(|| Sequential { stream, blocks: blocks(), checkpoint: checkpoint(args) })
}

/// How codes are chosen.
fn choice<'a>(
    args: &RoundingArgs,
    moments: Option<&'a Moments<'_>>,
    sequential: impl FnOnce(u64) -> Option<Sequential<'a>>,
) -> Choice<'a> {
    match (rounding(args), moments_memory(args).zip(moments)) {
        (RoundingArg::Greedy, _) => Choice::Greedy,
        (RoundingArg::Gptq, Some((memory, moments))) => Choice::Gptq(Compensation {
            rounding: Rounding { feedback: true, descents: args.refine, refit: args.refine > 0 },
            damp: args.damp.0,
            act_order: !args.no_act_order,
            sequential: sequential(memory),
            ..moments::compensation(moments, memory)
        }),
        (RoundingArg::Nearest | RoundingArg::Gptq, _) => Choice::Nearest,
    }
}

/// Bytes that second moments may take, where they are needed.
fn moments_memory(args: &RoundingArgs) -> Option<u64> {
    (rounding(args) == RoundingArg::Gptq).then(|| args.memory.map_or(MEMORY, |size| size.0))
}
