//! `tcq4 export`: numbers for other programs.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::export_row;
use crate::calib::store;
use crate::cli::args::{ChannelsArgs, ExportArgs, ExportWhat, RangesArgs, ScalesFromArgs};
use crate::cli::values::RangesKind;
use crate::cli::{Outcome, Session};
use crate::convert::{Conversion, PlanSettings, Reason};
use crate::error::{ExportError, Result};
use crate::gguf::Source;
use crate::inspect::{Matched, Range, Ranges, ScaleFormat, channels};
use crate::report::csv;
use crate::util::atomic_file::{self, check_target};
use crate::util::progress::Progress;

/// Names listed in a note before it says how many more there are.
const NAMES_SHOWN: usize = 3;

pub(in crate::cli) fn run(session: &Session, args: &ExportArgs) -> Outcome {
    match &args.what {
        ExportWhat::Row(args) => export_row::run(session, args),
        ExportWhat::Channels(args) => export_channels(session, args),
        ExportWhat::Ranges(args) => export_ranges(session, args),
        ExportWhat::Scales(args) => export_scales(session, args),
    }
}

fn export_channels(session: &Session, args: &ChannelsArgs) -> Outcome {
    check_target(&args.output, args.force, &[&args.stats])?;
    let statistics = store::load(&args.stats)?;
    if let Some(pattern) = args.tensor.iter().find(|p| !statistics.entries.keys().any(|name| p.is_match(name))) {
        let (path, pattern) = (args.stats.clone(), pattern.to_string());
        return Err(crate::Error::from(ExportError::NoMatch { path, pattern }).into());
    }
    let wanted = |name: &str| args.tensor.is_empty() || args.tensor.iter().any(|pattern| pattern.is_match(name));
    let chosen: Vec<_> = statistics.entries.iter().filter(|(name, _)| wanted(name)).collect();
    if let Some((name, _)) = chosen.iter().find(|(_, entry)| !entry.complete) {
        session.progress.note(&format!("{}: only mean squares are known of `{name}`", args.stats.display()));
    }
    let rows: usize = chosen.iter().map(|(_, entry)| entry.matrices * entry.columns).sum();
    let bytes = csv::channels(chosen.iter().flat_map(|(name, entry)| channels(name, entry)))?;
    atomic_file::write(&args.output, args.force, &[&args.stats], &bytes)?;
    let text = format!("{}: {rows} channels of {} tensors", args.output.display(), chosen.len());
    session.printer.text(&text);
    session.printer.record(
        "export",
        json!({ "what": "channels", "outputs": [args.output], "tensors": chosen.len(), "channels": rows }),
    );
    Ok(0)
}

fn export_ranges(session: &Session, args: &RangesArgs) -> Outcome {
    check_target(&args.output, args.force, &[&args.stats])?;
    let ranges = Ranges::of(&store::load(&args.stats)?, &args.stats)?;
    if !ranges.symmetric.is_empty() {
        session.progress.note(&format!(
            "{} of {} ranges are symmetric: the file has the largest magnitudes only ({})",
            ranges.symmetric.len(),
            ranges.by_name.len(),
            some(&ranges.symmetric)
        ));
    }
    if !ranges.unseen.is_empty() {
        let count = ranges.unseen.len();
        session.progress.note(&format!("{count} tensors saw no token and have no range ({})", some(&ranges.unseen)));
    }
    let value = match args.kind {
        RangesKind::ActivationRanges => ranges.activation_ranges(args.names.into()),
        RangesKind::Minmax => ranges.min_max(args.names.into()),
    };
    write_json(&args.output, args.force, &[&args.stats], &value)?;
    session.printer.text(&format!("{}: ranges of {} tensors", args.output.display(), ranges.by_name.len()));
    let record = json!({
        "what": "ranges",
        "outputs": [args.output],
        "tensors": ranges.by_name.len(),
        "symmetric": ranges.symmetric,
        "unseen": ranges.unseen,
    });
    session.printer.record("export", record);
    Ok(0)
}

fn export_scales(session: &Session, args: &ScalesFromArgs) -> Outcome {
    let source = args.model.as_deref().map(Source::open).transpose()?;
    let mut inputs: Vec<&Path> = vec![&args.from_ranges];
    inputs.extend(source.iter().flat_map(Source::shards));
    check_target(&args.output, args.force, &inputs)?;
    let ranges = Ranges::read(&args.from_ranges)?;
    let matched = match &source {
        Some(source) => matched(&ranges, source, &args.from_ranges)?,
        None => Matched { ranges: ranges.by_name, ..Matched::default() },
    };
    report_unmatched(session, &matched);
    let value = scales(&matched, args.format.into());
    write_json(&args.output, args.force, &inputs, &value)?;
    session.printer.text(&format!("{}: scales of {} tensors", args.output.display(), matched.ranges.len()));
    let record = json!({
        "what": "scales",
        "outputs": [args.output],
        "tensors": matched.ranges.len(),
        "unmatched_ranges": matched.unmatched_ranges,
        "tensors_without_range": matched.tensors_without_range,
    });
    session.printer.record("export", record);
    Ok(0)
}

/// Gives the linear layers of a model their ranges.
fn matched(ranges: &Ranges, source: &Source, path: &Path) -> Result<Matched> {
    let plan = Conversion::new(source, &PlanSettings { allow_requantize: true, ..PlanSettings::default() })?;
    let linear = |reason: &Reason| matches!(reason, Reason::Linear | Reason::Substituted { .. });
    let names = plan.tensors.iter().filter(|tensor| linear(&tensor.reason)).map(|tensor| tensor.name.as_str());
    let matched = ranges.matched(names);
    if matched.ranges.is_empty() {
        let what = format!("none of its names is a linear layer of {}", source.path().display());
        return Err(ExportError::Ranges { path: path.to_path_buf(), what }.into());
    }
    Ok(matched)
}

fn report_unmatched(session: &Session, matched: &Matched) {
    let note = |names: &[String], what: &str| {
        if !names.is_empty() {
            session.progress.note(&format!("{} {what} ({})", names.len(), some(names)));
        }
    };
    note(&matched.unmatched_ranges, "ranges belong to no linear layer of the model");
    note(&matched.tensors_without_range, "linear layers have no range in the file");
}

fn scales(matched: &Matched, format: ScaleFormat) -> Value {
    let one = |(name, range): (&String, &Range)| (name.clone(), json!(format.scale(*range)));
    json!({
        "format": format,
        "scales": matched.ranges.iter().map(one).collect::<Map<String, Value>>(),
        "unmatched_ranges": matched.unmatched_ranges,
        "tensors_without_range": matched.tensors_without_range,
    })
}

/// The first few names, and how many more there are.
fn some(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

pub(super) fn write_json(path: &Path, force: bool, inputs: &[&Path], value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| crate::Error::io(path, "write")(e.into()))?;
    atomic_file::write(path, force, inputs, (text + "\n").as_bytes())
}
