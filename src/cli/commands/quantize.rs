//! `tcq4 quantize`: quantises with given statistics or permutations.

use std::path::PathBuf;

use super::produce::{Evidence, Production};
use super::statistics;
use crate::calib::perms;
use crate::cli::args::QuantizeArgs;
use crate::cli::{Outcome, Session};
use crate::gguf::Source;

pub(in crate::cli) fn run(session: &Session, args: &QuantizeArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let inputs: Vec<PathBuf> = args.stats.iter().chain(&args.perms).cloned().collect();
    let production =
        Production { session, source: &source, output: &args.output, args: &args.production, inputs: &inputs };
    let mut evidence = Evidence::default();
    if let Some(path) = &args.stats {
        evidence.statistics = Some(statistics::load(path, &source)?);
        evidence.statistics_file = Some(path.display().to_string());
    }
    if let Some(path) = &args.perms {
        let file = perms::load(path)?;
        file.check(path, |name| source.tensor(name).map(crate::gguf::TensorInfo::columns))?;
        evidence.orders = file.reorder_enabled.then_some(file.permutations);
    }
    match production.plan()? {
        Some(plan) => production.finish(&plan, &evidence),
        None => Ok(0),
    }
}
