//! `tcq4 merge`: adds up what parts of a calibration text gave.

use std::path::Path;

use serde_json::json;

use crate::calib::{MomentsFile, moments_store, store};
use crate::cli::args::MergeArgs;
use crate::cli::{Outcome, Session};
use crate::error::{Error, MomentsError, Result};
use crate::util::atomic_file::check_target;

pub(in crate::cli) fn run(session: &Session, args: &MergeArgs) -> Outcome {
    let inputs: Vec<&Path> = args.inputs.iter().map(std::path::PathBuf::as_path).collect();
    check_target(&args.output, args.force, &inputs)?;
    let (kind, chunks) = if is_moments(inputs[0])? {
        let origin = moments_store::merge(&args.inputs, &args.output, args.force)?;
        ("second-moments", origin.chunks.len() as u32)
    } else {
        let mut sum = store::load(inputs[0])?;
        for path in &inputs[1..] {
            sum.merge(&store::load(path)?).map_err(Error::from)?;
        }
        store::save(&args.output, &sum, args.force, &inputs)?;
        ("statistics", sum.chunk_count)
    };
    session.printer.text(&format!("{}: {kind} of {chunks} chunks", args.output.display()));
    session.printer.record("merge", json!({ "output": args.output, "kind": kind, "chunks": chunks }));
    Ok(0)
}

/// Whether the file says that it holds second moments.
fn is_moments(path: &Path) -> Result<bool> {
    match MomentsFile::open(path) {
        Ok(_) => Ok(true),
        Err(Error::Moments(MomentsError::Kind { .. }) | Error::Gguf { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
