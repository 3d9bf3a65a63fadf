//! `tcq4 eval`: perplexity of a model on a text.

use std::path::Path;

use serde::Serialize;

use super::subject::Subject;
use crate::cli::args::EvalArgs;
use crate::cli::{Outcome, Session};
use crate::corpus::Corpus;
use crate::eval::{Perplexity, PerplexityOptions, perplexity};

#[derive(Serialize)]
struct Record<'a> {
    model: &'a Path,
    text: &'a Path,
    /// Whether TCQ4 tensors were decoded into a temporary copy.
    decoded: bool,
    #[serde(flatten)]
    details: &'a Perplexity,
}

pub(in crate::cli) fn run(session: &Session, args: &EvalArgs) -> Outcome {
    let corpus = Corpus::read(std::slice::from_ref(&args.text))?;
    let subject = Subject::open(session, &args.model, args.ngl)?;
    let options =
        PerplexityOptions { ctx: args.ctx, chunks: args.chunks.map(|n| n as usize), threads: session.threads() };
    let result = perplexity(&subject.model, &corpus.text, &options, &session.progress)?;
    session.printer.text(&format!(
        "{}: perplexity {:.4} ± {:.4} ({} chunks of {} tokens)",
        args.model.display(),
        result.value,
        result.error,
        result.chunks,
        result.ctx
    ));
    let record = Record { model: &args.model, text: &args.text, decoded: subject.decoded, details: &result };
    session.printer.record("eval", record);
    Ok(0)
}
