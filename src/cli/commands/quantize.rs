//! `tcq4 quantize`: quantises with given statistics or permutations.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::moments::{self, MEMORY, Moments};
use super::produce::{Choice, Evidence, Production};
use super::statistics;
use crate::calib::perms;
use crate::cli::args::QuantizeArgs;
use crate::cli::values::RoundingArg;
use crate::cli::{Outcome, Session};
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::tcq::Encoder;
use crate::util::progress::Progress;

pub(in crate::cli) fn run(session: &Session, args: &QuantizeArgs) -> Outcome {
    check(args)?;
    let source = Source::open(&args.model)?;
    let inputs: Vec<PathBuf> = args.stats.iter().chain(&args.perms).chain(&args.second_moments).cloned().collect();
    let memory = args.memory.map_or(MEMORY, |size| size.0);
    let moments = match &args.second_moments {
        Some(path) => Some(Moments::File(moments::load(session, path, &source)?)),
        None => None,
    };
    let production = Production {
        session,
        source: &source,
        output: &args.output,
        args: &args.production,
        inputs: &inputs,
        moments: (args.rounding == RoundingArg::Gptq).then_some(memory),
    };
    let choice = match (args.rounding, &moments) {
        (RoundingArg::Gptq, Some(moments)) => Choice::Gptq(moments::compensation(moments, memory)),
        (RoundingArg::Greedy, _) => Choice::Greedy,
        _ => Choice::Nearest,
    };
    let mut evidence = Evidence { choice, ..Evidence::default() };
    if let Some(path) = &args.stats {
        evidence.statistics = Some(statistics::load(path, &source)?);
        evidence.statistics_file = Some(path.display().to_string());
    }
    if let Some(path) = &args.perms {
        let file = perms::load(path)?;
        file.check(path, |name| source.tensor(name).map(crate::gguf::TensorInfo::columns))?;
        evidence.orders = Some(if file.reorder_enabled { file.permutations } else { BTreeMap::new() });
    }
    let Some(plan) = production.plan()? else { return Ok(0) };
    let is_used = |name: &str| plan.tensors.iter().any(|t| t.name == name && t.is_tcq4());
    let unused = evidence.orders.iter().flatten().filter(|(name, _)| !is_used(name)).count();
    if unused > 0 {
        session
            .progress
            .note(&format!("{unused} permutations are of tensors that do not become TCQ4, and are left out"));
    }
    production.finish(&plan, evidence)
}

/// Refuses options that do not go together.
fn check(args: &QuantizeArgs) -> Result<()> {
    let usage = |message: &str, hint: &str| Err(Error::Usage { message: message.into(), hint: Some(hint.into()) });
    match args.rounding {
        RoundingArg::Gptq if args.second_moments.is_none() => usage(
            "--rounding gptq needs second moments of the activations",
            "pass --second-moments FILE, made by `tcq4 calibrate --second-moments`, or use `tcq4 convert`",
        ),
        RoundingArg::Nearest | RoundingArg::Greedy if args.second_moments.is_some() => {
            usage("--second-moments is of no use without GPTQ", "pass --rounding gptq, or leave it out")
        }
        RoundingArg::Greedy if args.stats.is_none() => usage(
            "--rounding greedy needs statistics of the activations",
            "pass --stats FILE, made by `tcq4 calibrate --stats`",
        ),
        RoundingArg::Greedy | RoundingArg::Gptq if args.production.method.encoder == Encoder::Parity => usage(
            "GPTQ and greedy rounding choose other codes than `--encoder parity` stands for",
            "leave out --encoder parity, or pass --rounding nearest",
        ),
        _ => Ok(()),
    }
}
