//! `tcq4 calibrate`: text through the model, permutations (and statistics) out.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::moments::{Kept, MEMORY};
use super::perms::{Request, make, plan};
use super::statistics::{self, Keep};
use crate::cli::args::CalibrateArgs;
use crate::cli::{Outcome, Session, data, settings};
use crate::gguf::Source;
use crate::quant::recipe::MANY_SAMPLES;
use crate::util::atomic_file::check_target;
use crate::util::progress::Progress;

pub(in crate::cli) fn run(session: &Session, args: &CalibrateArgs) -> Outcome {
    let source = Source::open(&args.model)?;
    let specs = data::sources(&args.calibration.calibration)?;
    let texts = &data::files(&specs);
    let (output, force) = (&args.perms.output, args.perms.force);
    let inputs: Vec<&Path> = source.shards().chain(texts.iter().map(PathBuf::as_path)).collect();
    check_target(output, force, &inputs)?;
    if let Some(path) = &args.stats {
        settings::check_side_output(path, output, force, &source, texts)?;
    }
    if let Some(path) = &args.second_moments {
        settings::check_side_output(path, output, force, &source, texts)?;
    }
    let statistics = if args.calibration.calibration.is_empty() {
        session.progress.note("no calibration text (-c): permutations come from the model's structure alone, which is fast and less accurate");
        None
    } else {
        let keep = Keep::beside(&args.perms.output, args.resume);
        let run = statistics::Run::open(session, &source, &args.calibration, &specs, MANY_SAMPLES, &keep, None)?;
        let run = run.on(session.device(&args.device)?.summer()?);
        let statistics = run.statistics()?;
        if let Some(path) = &args.second_moments {
            let kept = Kept { path, force, memory: args.memory.map_or(MEMORY, |size| size.0) };
            kept.write(&run, (&source, &plan(&source)?))?;
            session.printer.text(&format!("{}: second moments", path.display()));
        }
        Some((statistics, keep))
    };
    if let (Some(path), Some((statistics, _))) = (&args.stats, &statistics) {
        statistics::save(path, statistics, args.perms.force, &source)?;
        session.printer.text(&format!("{}: statistics of {} tensors", path.display(), statistics.entries.len()));
    }
    let measured = statistics.as_ref().map(|(statistics, _)| statistics);
    let request = Request { source: &source, statistics: measured, output: &args.perms };
    let count = make(session, &request)?;
    if let Some((_, keep)) = &statistics {
        keep.forget()?;
    }
    let (chunks, size) = measured.map_or((0, 0), |s| (s.chunk_count, s.chunk_size));
    session.printer.record(
        "calibrate",
        json!({ "output": args.perms.output, "stats": args.stats, "second_moments": args.second_moments, "permutations": count, "chunks": chunks, "chunk_size": size, "text": measured.and_then(statistics::composition), "device": session.device(&args.device)?.use_ }),
    );
    Ok(0)
}
