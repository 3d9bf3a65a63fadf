//! `tcq4 convert`: the main job in one go.

use super::produce::{Choice, Evidence, Production};
use super::statistics;
use crate::cli::args::{ConvertArgs, RoundingArgs};
use crate::cli::values::{Preset, RoundingArg};
use crate::cli::{Outcome, Session, data, settings};
use crate::convert::Compensation;
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::model::Arch;
use crate::quant::rounding::Rounding;
use crate::tcq::Encoder;

/// What second moments may take where `--memory` does not say.
const MEMORY: u64 = 4 << 30;

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
    plan.check_encoders()?; // before the long part
    let has_experts = Arch::from_metadata(source.metadata()).experts > 0;
    let samples = samples(args.rounding.preset, has_experts);
    let keep = statistics::Keep::in_memory();
    let run = statistics::Run::open(session, &source, &args.calibration, &specs, samples, &keep)?;
    let statistics = run.statistics()?;
    if let Some(path) = &args.stats {
        statistics::save(path, &statistics, args.production.out.force, &source)?;
    }
    let statistics_file = args.stats.as_ref().map(|path| path.display().to_string());
    let choice = choice(&args.rounding, &run);
    let evidence = Evidence { statistics: Some(statistics), statistics_file, orders: None, choice, run: Some(&run) };
    production.finish(&plan, evidence)
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
    Ok(())
}

fn rounding(args: &RoundingArgs) -> RoundingArg {
    args.rounding.unwrap_or(match args.preset {
        Preset::Best => RoundingArg::Gptq,
        Preset::Fast | Preset::Balanced => RoundingArg::Nearest,
    })
}

/// How codes are chosen.
fn choice<'a>(args: &RoundingArgs, moments: &'a statistics::Run<'_>) -> Choice<'a> {
    match (rounding(args), moments_memory(args)) {
        (RoundingArg::Greedy, _) => Choice::Greedy,
        (RoundingArg::Gptq, Some(memory)) => Choice::Gptq(Compensation {
            moments,
            rounding: Rounding { feedback: true, descents: args.refine, refit: args.refine > 0 },
            damp: args.damp.0,
            act_order: !args.no_act_order,
            memory,
        }),
        (RoundingArg::Nearest | RoundingArg::Gptq, _) => Choice::Nearest,
    }
}

/// Bytes that second moments may take, where they are needed.
fn moments_memory(args: &RoundingArgs) -> Option<u64> {
    (rounding(args) == RoundingArg::Gptq).then(|| args.memory.map_or(MEMORY, |size| size.0))
}
