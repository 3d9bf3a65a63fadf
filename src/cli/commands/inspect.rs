//! `tcq4 inspect`: what is in a GGUF file.

use crate::cli::args::InspectArgs;
use crate::cli::table::{Table, count};
use crate::cli::{Outcome, Session};
use crate::gguf::Source;
use crate::inspect::{Summary, summarize};
use crate::util::units::Bytes;

/// Whether a key is one of many of its kind, which only `--all` shows: the tokenizer's, and those of single tensors.
fn is_bulk(key: &str) -> bool {
    let own = key.starts_with("tcq4.");
    key.starts_with("tokenizer.")
        || key == "tcq4.transforms"
        || key.starts_with("tcq4.vector.")
        || (own && key.ends_with(".perm"))
        || (own && key.ends_with(".activations") && key != "tcq4.activations")
        || (own && key.ends_with(".sha256") && key != "tcq4.source.sha256")
}

pub(in crate::cli) fn run(session: &Session, args: &InspectArgs) -> Outcome {
    let summary = summarize(&Source::open(&args.file)?);
    session.printer.text(&render(&summary, args.all));
    session.printer.record("inspect", &summary);
    Ok(0)
}

fn render(summary: &Summary, all: bool) -> String {
    let mut text = String::new();
    for file in &summary.files {
        text += &format!("{}\n", file.display());
    }
    text += &format!(
        "GGUF v{}, {}, {}: {} weights in {} tensors, {} ({:.3} bits a weight)\n\n",
        summary.version,
        summary.architecture.as_deref().unwrap_or("no architecture"),
        summary.name.as_deref().unwrap_or("no name"),
        count(summary.weights),
        summary.tensors.len(),
        Bytes(summary.file_bytes),
        summary.bits_per_weight,
    );
    text += &types(summary);
    let marked = summary.tensors.iter().filter(|tensor| tensor.activations.is_some()).count();
    if marked > 0 {
        text += &format!("\n\n{marked} tensors have an activation path of their own (--all shows which)");
    }
    text += "\n\n";
    text += &metadata(summary, all);
    if all {
        text += "\n\n";
        text += &tensors(summary);
    }
    text
}

fn types(summary: &Summary) -> String {
    let mut table = Table::new(&["type", ">tensors", ">weights", ">bytes", ">bits"]);
    for share in &summary.types {
        let bits = share.bytes as f64 * 8.0 / share.weights.max(1) as f64;
        table.row([
            share.ty.clone(),
            share.tensors.to_string(),
            count(share.weights),
            Bytes(share.bytes).to_string(),
            format!("{bits:.3}"),
        ]);
    }
    table.render()
}

fn metadata(summary: &Summary, all: bool) -> String {
    let mut table = Table::new(&["key", "value"]);
    let keys: Vec<_> = summary.metadata.iter().filter(|(key, _)| all || !is_bulk(key)).collect();
    for (key, value) in &keys {
        table.row([key.clone(), value.clone()]);
    }
    let hidden = summary.metadata.len() - keys.len();
    let rest = if hidden > 0 {
        format!("\n… {hidden} more keys; --all shows them, and every tensor")
    } else {
        String::new()
    };
    table.render() + &rest
}

fn tensors(summary: &Summary) -> String {
    let mut table = Table::new(&["tensor", "type", ">shape", ">bytes", "permuted", "activations"]);
    for tensor in &summary.tensors {
        let shape = tensor.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let permuted = if tensor.permuted { "yes" } else { "" };
        table.row([
            tensor.name.clone(),
            tensor.ty.clone(),
            shape,
            Bytes(tensor.bytes).to_string(),
            permuted.to_string(),
            tensor.activations.clone().unwrap_or_default(),
        ]);
    }
    table.render()
}
