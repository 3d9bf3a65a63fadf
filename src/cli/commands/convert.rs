//! `tcq4 convert`: the main job in one go.

use super::produce::{Evidence, Production};
use super::statistics;
use crate::cli::args::ConvertArgs;
use crate::cli::{Outcome, Session, data, settings};
use crate::gguf::Source;
use crate::model::Arch;

pub(in crate::cli) fn run(session: &Session, args: &ConvertArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let specs = data::sources(&args.calibration.calibration)?;
    let texts = data::files(&specs);
    let production =
        Production { session, source: &source, output: &args.output, args: &args.production, inputs: &texts };
    let Some(plan) = production.plan()? else { return Ok(0) };
    if let Some(path) = &args.stats {
        settings::check_side_output(path, &args.output, args.production.out.force, &source, &texts)?;
    }
    plan.check_encoders()?; // before the long part
    let has_experts = Arch::from_metadata(source.metadata()).experts > 0;
    let samples = if has_experts { statistics::MANY_SAMPLES } else { statistics::FEW_SAMPLES };
    let mut hessians = crate::calib::Hessians::default();
    let statistics = statistics::measure(
        session,
        &source,
        &args.calibration,
        &specs,
        samples,
        &statistics::Keep::in_memory(),
        std::env::var("TCQ4_EXP").is_ok().then_some(&mut hessians),
    )?;
    if let Some(path) = &args.stats {
        statistics::save(path, &statistics, args.production.out.force, &source)?;
    }
    let statistics_file = args.stats.as_ref().map(|path| path.display().to_string());
    production.finish(
        &plan,
        &Evidence { statistics: Some(statistics), statistics_file, orders: None, hessians: hessians.finish() },
    )
}
