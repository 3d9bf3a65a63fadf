//! `tcq4 eval`: perplexity of a model on a text.

use std::path::Path;

use serde::Serialize;

use crate::cli::args::EvalArgs;
use crate::cli::{Outcome, Session};
use crate::convert::{dequantize, is_tcq4};
use crate::corpus::Corpus;
use crate::eval::{Perplexity, PerplexityOptions, perplexity};
use crate::gguf::{GgmlType, Source};
use crate::llama::{Model, ModelOptions};
use crate::tcq::Encoder;

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
    let source = Source::open(&args.model)?;
    let decoded = source.tensors().iter().any(|t| is_tcq4(&source, t));
    let folder = tempfile::tempdir()?;
    let model = if decoded {
        let copy = folder.path().join("decoded.gguf");
        dequantize(&source, &copy, GgmlType::F16, false, session.codec(Encoder::Default)?, &session.progress)?;
        Model::load(&copy, &ModelOptions { gpu_layers: args.ngl })?
    } else {
        Model::load(source.first_shard(), &ModelOptions { gpu_layers: args.ngl })?
    };
    let options =
        PerplexityOptions { ctx: args.ctx, chunks: args.chunks.map(|n| n as usize), threads: session.threads() };
    let result = perplexity(&model, &corpus.text, &options, &session.progress)?;
    session.printer.text(&format!(
        "{}: perplexity {:.4} ± {:.4} ({} chunks of {} tokens)",
        args.model.display(),
        result.value,
        result.error,
        result.chunks,
        result.ctx
    ));
    let record = Record { model: &args.model, text: &args.text, decoded, details: &result };
    session.printer.record("eval", record);
    Ok(0)
}
