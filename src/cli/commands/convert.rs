//! `tcq4 convert`: the main job in one go.

use super::produce::{Evidence, Production};
use super::statistics;
use crate::cli::args::ConvertArgs;
use crate::cli::{Outcome, Session};
use crate::gguf::Source;

pub(in crate::cli) fn run(session: &Session, args: &ConvertArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let production = Production { session, source: &source, output: &args.output, args: &args.production };
    let Some(plan) = production.plan()? else { return Ok(0) };
    let statistics = statistics::measure(session, &source, &args.calibration, &statistics::Keep::in_memory())?;
    if let Some(path) = &args.stats {
        statistics::save(path, &statistics, args.production.out.force, &source)?;
    }
    production.finish(&plan, &Evidence { statistics: Some(statistics), ..Evidence::default() })
}
