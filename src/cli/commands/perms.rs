//! `tcq4 perms`: permutations from a statistics file or from structure, without running the model.

use std::collections::BTreeSet;

use serde_json::json;

use super::statistics;
use crate::calib::{PermFile, Statistics, perms};
use crate::cli::args::{PermsArgs, PermsOutputArgs};
use crate::cli::{Outcome, Session};
use crate::convert::{Conversion, PlanSettings, read_rows};
use crate::error::Result;
use crate::gguf::Source;
use crate::quant::recipe::OrderRule;
use crate::quant::{Activations, Apply, Scales, Settings, prepare};
use crate::tcq::Encoder;
use crate::util::atomic_file::check_target;
use crate::util::progress::Progress;

pub(in crate::cli) fn run(session: &Session, args: &PermsArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let inputs: Vec<_> = source.shards().chain(args.stats.as_deref()).collect();
    check_target(&args.perms.output, args.perms.force, &inputs)?;
    let statistics = args.stats.as_ref().map(|path| statistics::load(path, &source)).transpose()?;
    if statistics.is_none() {
        session
            .progress
            .note("no --stats: permutations come from the model's structure alone, which is fast and less accurate");
    }
    let request = Request { source: &source, statistics: statistics.as_ref(), output: &args.perms };
    let count = make(session, &request)?;
    session.printer.record("perms", json!({ "output": args.perms.output, "permutations": count }));
    Ok(0)
}

/// What permutations are made from and where they go.
pub(super) struct Request<'a> {
    pub(super) source: &'a Source,
    pub(super) statistics: Option<&'a Statistics>,
    pub(super) output: &'a PermsOutputArgs,
}

/// Makes and writes `perms.json`; returns the number of permutations.
pub(super) fn make(session: &Session, request: &Request<'_>) -> Result<usize> {
    let source = request.source;
    let prepared = prepare(
        source,
        &|tensor, first, out| read_rows(source, tensor, first, out),
        request.statistics,
        &Settings {
            targets: targets(source)?,
            scales: Scales::None,
            orders: request.output.order.map_or(OrderRule::Zigzag, OrderRule::from).into(),
            apply: Apply::Runtime,
            activations: Activations::Int8,
            codec: session.codec(Encoder::Parity)?,
        },
        &session.progress,
    )?;
    for notice in &prepared.notices {
        session.progress.note(notice);
    }
    let description = if request.statistics.is_some() { perms::FROM_CALIBRATION } else { perms::FROM_STRUCTURE };
    let orders = prepared.runtime_orders();
    let count = orders.len();
    perms::save(&request.output.output, &PermFile::new(description, orders), request.output.force)?;
    session.printer.text(&format!("{}: permutations of {count} tensors", request.output.output.display()));
    Ok(count)
}

/// The tensors that can be TCQ4.
fn targets(source: &Source) -> Result<BTreeSet<String>> {
    let settings = PlanSettings { allow_requantize: true, ..PlanSettings::default() };
    let plan = Conversion::new(source, &settings)?;
    Ok(plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.name.clone()).collect())
}
