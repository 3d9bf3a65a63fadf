//! `tcq4 merge`: puts together what several machines made of one model, or adds up statistics of several texts.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::calib::{MomentsFile, StatisticsPart, moments_store, store};
use crate::cli::args::MergeArgs;
use crate::cli::{Outcome, Session};
use crate::convert::{is_part, merge_parts};
use crate::error::{Error, MomentsError, PartsError, Result};
use crate::gguf::Source;
use crate::util::atomic_file::check_target;
use crate::util::units::Bytes;

pub(in crate::cli) fn run(session: &Session, args: &MergeArgs) -> Outcome {
    let inputs: Vec<&Path> = args.inputs.iter().map(PathBuf::as_path).collect();
    check_target(&args.output, args.force, &inputs)?;
    let kind = common_kind(&args.inputs)?;
    let chunks = match kind {
        Kind::StatisticsParts => {
            let statistics = StatisticsPart::merge(&args.inputs)?.as_kept();
            store::save(&args.output, &statistics, args.force, &inputs)?;
            statistics.chunk_count
        }
        Kind::SecondMoments => {
            let origin = moments_store::merge(&args.inputs, &args.output, args.force)?;
            origin.chunks.len() as u32
        }
        Kind::ModelParts => return merge_model(session, args),
        Kind::Statistics => {
            let mut sum = store::load(inputs[0])?;
            for path in &inputs[1..] {
                sum.merge(&store::load(path)?).map_err(Error::from)?;
            }
            store::save(&args.output, &sum, args.force, &inputs)?;
            sum.chunk_count
        }
    };
    let name = kind.name();
    session.printer.text(&format!("{}: {name} of {chunks} chunks", args.output.display()));
    session.printer.record("merge", json!({ "output": args.output, "kind": name, "chunks": chunks }));
    Ok(0)
}

/// Puts the parts of a model together.
fn merge_model(session: &Session, args: &MergeArgs) -> Outcome {
    let merged = merge_parts(&args.inputs, &args.output, args.force, &session.progress)?;
    let files = merged.outputs.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n");
    let (parts, tensors) = (merged.parts, merged.tensors);
    session.printer.text(&format!("{files}\n{}, {tensors} tensors of {parts} parts", Bytes(merged.bytes)));
    let kind = Kind::ModelParts.name();
    session.printer.record("merge", json!({ "output": args.output, "kind": kind, "merged": merged }));
    Ok(0)
}

/// What a file to be merged holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Statistics,
    StatisticsParts,
    SecondMoments,
    ModelParts,
}

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        if StatisticsPart::is_at(path) {
            return Ok(Self::StatisticsParts);
        }
        match MomentsFile::open(path) {
            Ok(_) => Ok(Self::SecondMoments),
            Err(Error::Moments(MomentsError::Kind { .. })) if is_part(&Source::open(path)?) => Ok(Self::ModelParts),
            Err(Error::Moments(MomentsError::Kind { .. }) | Error::Gguf { .. }) => Ok(Self::Statistics),
            Err(error) => Err(error),
        }
    }

    /// What one file of the kind is called.
    fn file(self) -> &'static str {
        match self {
            Self::StatisticsParts => "a part of statistics",
            Self::ModelParts => "a part of a model",
            kind => kind.name(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Statistics | Self::StatisticsParts => "statistics",
            Self::SecondMoments => "second-moments",
            Self::ModelParts => "model",
        }
    }
}

/// The kind of all files.
fn common_kind(paths: &[PathBuf]) -> Result<Kind> {
    let expected = Kind::of(&paths[0])?;
    for path in &paths[1..] {
        let found = Kind::of(path)?;
        if found != expected {
            let (path, first, expected) = (path.clone(), paths[0].clone(), expected.file());
            let found = if found == Kind::Statistics { "a file that is no part" } else { found.file() };
            return Err(PartsError::Kind { path, first, expected, found }.into());
        }
    }
    Ok(expected)
}
