//! `tcq4 calibrate`: text through the model, permutations (and statistics) out; or one part of the text, and parts out.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::moments::{Kept, MEMORY};
use super::perms::{Request, make, plan};
use super::statistics::{self, Keep};
use crate::cli::args::{CalibrateArgs, PermsOutputArgs};
use crate::cli::{Outcome, Session, data, settings};
use crate::corpus::SourceSpec;
use crate::error::{Error, Result};
use crate::gguf::Source;
use crate::quant::recipe::MANY_SAMPLES;
use crate::util::atomic_file::check_target;
use crate::util::progress::Progress;
use crate::util::shard::Shard;

pub(in crate::cli) fn run(session: &Session, args: &CalibrateArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let specs = data::sources(&args.calibration.calibration)?;
    match (args.shard, args.output.clone()) {
        (Some(shard), _) => run_part(session, args, &source, &specs, shard),
        (None, Some(output)) => {
            let perms = PermsOutputArgs { output, order: args.order, force: args.force };
            run_whole(session, args, &source, &specs, &perms)
        }
        (None, None) => Err(Error::Usage { message: "there is nothing to write".into(), hint: None }.into()),
    }
}

fn run_whole(
    session: &Session,
    args: &CalibrateArgs,
    source: &Source,
    specs: &[SourceSpec],
    perms: &PermsOutputArgs,
) -> Outcome {
    let texts = &data::files(specs);
    let (output, force) = (&perms.output, perms.force);
    let inputs: Vec<&Path> = source.shards().chain(texts.iter().map(PathBuf::as_path)).collect();
    check_target(output, force, &inputs)?;
    for path in args.stats.iter().chain(&args.second_moments) {
        settings::check_side_output(path, output, force, source, texts)?;
    }
    let statistics = if args.calibration.calibration.is_empty() {
        session.progress.note("no calibration text (-c): permutations come from the model's structure alone, which is fast and less accurate");
        None
    } else {
        let keep = Keep::beside(output, args.resume);
        let run = statistics::Run::open(session, source, &args.calibration, specs, MANY_SAMPLES, &keep, None)?;
        let run = run.on(session.device(&args.device)?.summer()?);
        let statistics = run.statistics()?;
        keep_moments(session, args, &run, source)?;
        Some((statistics, keep))
    };
    if let (Some(path), Some((statistics, _))) = (&args.stats, &statistics) {
        statistics::save(path, statistics, force, source)?;
        session.printer.text(&format!("{}: statistics of {} tensors", path.display(), statistics.entries.len()));
    }
    let measured = statistics.as_ref().map(|(statistics, _)| statistics);
    let count = make(session, &Request { source, statistics: measured, output: perms })?;
    if let Some((_, keep)) = &statistics {
        keep.forget()?;
    }
    let (chunks, size) = measured.map_or((0, 0), |s| (s.chunk_count, s.chunk_size));
    session.printer.record(
        "calibrate",
        json!({ "output": output, "stats": args.stats, "second_moments": args.second_moments, "permutations": count, "chunks": chunks, "chunk_size": size, "text": measured.and_then(statistics::composition), "shard": null, "device": session.device(&args.device)?.use_ }),
    );
    Ok(0)
}

/// Measures second moments, if they are wanted, and keeps them.
fn keep_moments(session: &Session, args: &CalibrateArgs, run: &statistics::Run<'_>, source: &Source) -> Result<()> {
    let Some(path) = &args.second_moments else { return Ok(()) };
    let kept = Kept { path, force: args.force, memory: args.memory.map_or(MEMORY, |size| size.0) };
    kept.write(run, (source, &plan(source)?))?;
    session.printer.text(&format!("{}: second moments", path.display()));
    Ok(())
}

/// Runs a part of the text.
fn run_part(session: &Session, args: &CalibrateArgs, source: &Source, specs: &[SourceSpec], shard: Shard) -> Outcome {
    let texts = &data::files(specs);
    let Some(main) = args.stats.as_ref().or(args.second_moments.as_ref()) else {
        let hint = Some("add --stats FILE, --second-moments FILE, or both".into());
        return Err(
            Error::Usage { message: "--shard writes a part of statistics or second moments".into(), hint }.into()
        );
    };
    let inputs: Vec<&Path> = source.shards().chain(texts.iter().map(PathBuf::as_path)).collect();
    check_target(main, args.force, &inputs)?;
    if let (Some(_), Some(moments)) = (&args.stats, &args.second_moments) {
        settings::check_side_output(moments, main, args.force, source, texts)?;
    }
    let keep = Keep::beside(main, args.resume);
    let run =
        statistics::Run::open(session, source, &args.calibration, specs, MANY_SAMPLES, &keep, None)?.of_part(shard);
    let run = run.on(session.device(&args.device)?.summer()?);
    if let Some(path) = &args.stats {
        let part = run.statistics_part()?;
        part.save(path, args.force, &inputs)?;
        keep.forget()?;
        session.printer.text(&format!("{}: part {shard} of statistics of {} inputs", path.display(), part.inputs()));
    }
    keep_moments(session, args, &run, source)?;
    session.printer.record(
        "calibrate",
        json!({ "output": null, "stats": args.stats, "second_moments": args.second_moments, "shard": shard.to_string(), "device": session.device(&args.device)?.use_ }),
    );
    Ok(0)
}
