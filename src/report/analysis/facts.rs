//! What was analysed, and how.

use std::path::Path;

use super::common::path_words;
use crate::analysis::Analysis;
use crate::util::units::Bytes;

/// The title of the page.
pub(super) fn title(analysis: &Analysis) -> String {
    format!("What TCQ4 does to {}", name(analysis))
}

fn name(analysis: &Analysis) -> String {
    let model = &analysis.model;
    let file = || Path::new(&model.path).file_name().map(|name| name.to_string_lossy().into_owned());
    if model.name.is_empty() { file().unwrap_or_else(|| "a model".to_owned()) } else { model.name.clone() }
}

/// One sentence below the title.
pub(super) fn lead(analysis: &Analysis) -> String {
    let model = &analysis.model;
    let experts = if model.experts > 0 { format!(" of {} experts each", model.experts) } else { String::new() };
    format!(
        "{} with {} layers{experts}; {} of tensors become {}, {:.3} bits a weight.",
        model.architecture,
        model.layers,
        Bytes(model.source_bytes),
        Bytes(model.bytes),
        8.0 * model.bytes as f64 / model.weights.max(1) as f64
    )
}

/// Facts as name and value.
pub(super) fn facts(analysis: &Analysis) -> Vec<(String, String)> {
    let (model, setup) = (&analysis.model, &analysis.setup);
    let text = |text: &str| if text.is_empty() { "–".to_owned() } else { text.to_owned() };
    let tokens = u64::from(setup.chunks) * u64::from(setup.chunk_tokens);
    let rows = if setup.rows_held_out { "from text that the statistics have not seen" } else { "from the same text" };
    let facts = [
        ("Model file", text(&model.path)),
        ("Converted file", model.converted.clone().unwrap_or_else(|| "none; weights were encoded in memory".into())),
        ("Weights", model.weights.to_string()),
        ("Statistics", setup.statistics.clone().unwrap_or_else(|| "none".into())),
        ("Calibration text", text(&setup.datasets.join(", "))),
        ("Tokens", format!("{tokens} ({} chunks of {})", setup.chunks, setup.chunk_tokens)),
        ("Kept of inputs", if setup.complete { "E|x|, E[x], E[x²] and max|x|" } else { "E[x²] only" }.into()),
        ("Activations assumed", path_words(&setup.activations).to_owned()),
        ("Channel scales", text(&setup.scales)),
        ("Order of channels", text(&setup.order)),
        ("Encoder", text(&setup.encoder)),
        ("Output rows a matrix", format!("at most {}", setup.output_rows)),
        ("Sample rows a group", format!("at most {}, {rows}", setup.sample_rows)),
        ("Dead below", format!("τ = {}", setup.tau)),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
