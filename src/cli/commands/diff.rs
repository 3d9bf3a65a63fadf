//! `tcq4 diff`: how two GGUF files differ.

use serde::Serialize;

use crate::cli::args::DiffArgs;
use crate::cli::{Outcome, Session};
use crate::gguf::Source;
use crate::inspect::{Change, Diff, diff};

#[derive(Serialize)]
struct Record<'a> {
    a: &'a std::path::Path,
    b: &'a std::path::Path,
    same: bool,
    #[serde(flatten)]
    diff: &'a Diff,
}

pub(in crate::cli) fn run(session: &Session, args: &DiffArgs) -> Outcome {
    let diff = diff(&Source::open(&args.a)?, &Source::open(&args.b)?);
    session.printer.text(&render(&diff));
    session.printer.record("diff", Record { a: &args.a, b: &args.b, same: diff.is_empty(), diff: &diff });
    Ok(0)
}

fn render(diff: &Diff) -> String {
    let lines = |title: &str, changes: &[Change]| match changes {
        [] => String::new(),
        changes => format!("{title}\n{}\n", changes.iter().map(line).collect::<Vec<_>>().join("\n")),
    };
    let same = format!("{} tensors are the same to the byte", diff.same_tensors);
    match diff.is_empty() {
        true => format!("the same metadata; {same}"),
        false => lines("metadata", &diff.metadata) + &lines("tensors", &diff.tensors) + &same,
    }
}

fn line(change: &Change) -> String {
    match change {
        Change::Removed { name } => format!("  - {name}"),
        Change::Added { name } => format!("  + {name}"),
        Change::Changed { name, from, to } => format!("  ~ {name}: {from} -> {to}"),
    }
}
