//! `tcq4 quantize`: quantises with given statistics or permutations.

use std::collections::BTreeMap;
use std::path::PathBuf;

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
    let choice = choice(args)?;
    let source = Source::open(&args.model)?;
    let inputs: Vec<PathBuf> = args.stats.iter().chain(&args.perms).cloned().collect();
    let production = Production {
        session,
        source: &source,
        output: &args.output,
        args: &args.production,
        inputs: &inputs,
        moments: None,
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

/// How codes are chosen.
fn choice(args: &QuantizeArgs) -> Result<Choice<'static>> {
    let usage = |message: &str, hint: &str| Err(Error::Usage { message: message.into(), hint: Some(hint.into()) });
    match args.rounding {
        RoundingArg::Nearest => Ok(Choice::Nearest),
        RoundingArg::Gptq => usage("GPTQ needs the model to run", "use `tcq4 convert --rounding gptq`"),
        RoundingArg::Greedy if args.stats.is_none() => usage(
            "--rounding greedy needs statistics of the activations",
            "pass --stats FILE, made by `tcq4 calibrate --stats`",
        ),
        RoundingArg::Greedy if args.production.method.encoder == Encoder::Parity => usage(
            "greedy rounding chooses other codes than `--encoder parity` stands for",
            "leave out --encoder parity, or pass --rounding nearest",
        ),
        RoundingArg::Greedy => Ok(Choice::Greedy),
    }
}
