//! The result of `tcq4 eval` as text: a line for one perplexity, a table for several texts, a block for each comparison.

use super::eval::{DataSet, Record};
use crate::cli::table::Table;
use crate::eval::{Divergence, Estimate, Perplexity};

pub(super) fn render(record: &Record<'_>) -> String {
    let model = subject(record);
    let mut parts: Vec<String> = Vec::new();
    match record.data_sets.as_slice() {
        [one] if one.measured.divergence.is_none() => {
            let perplexity = &one.measured.perplexity;
            let (value, cut) = (estimate(perplexity.estimate(), 4), cut(perplexity));
            parts.push(format!("{model}: perplexity {value} ({cut})"));
        }
        sets => {
            parts.extend(sets.iter().filter_map(|set| block(record, set)));
            if sets.len() > 1 {
                parts.push(table(record));
            }
        }
    }
    parts.join("\n\n")
}

/// The model, and how its activations were rounded.
fn subject(record: &Record<'_>) -> String {
    let rounded = record.simulate.map(|path| format!(" with {path} activations"));
    format!("{}{}", record.model.display(), rounded.unwrap_or_default())
}

fn estimate(estimate: Estimate, digits: usize) -> String {
    format!("{:.digits$} ± {:.digits$}", estimate.value, estimate.error)
}

fn percent(share: Estimate, digits: usize) -> String {
    format!("{} %", estimate(share.times(100.0), digits))
}

fn cut(perplexity: &Perplexity) -> String {
    let Perplexity { chunks, ctx, .. } = perplexity;
    match perplexity.stride {
        None => format!("{chunks} chunks of {ctx} tokens"),
        Some(stride) => format!("{chunks} windows of {ctx} tokens, {stride} apart"),
    }
}

/// One comparison.
fn block(record: &Record<'_>, set: &DataSet) -> Option<String> {
    let (perplexity, divergence) = (&set.measured.perplexity, set.measured.divergence.as_ref()?);
    let reference = record.reference.map(|path| path.display().to_string()).unwrap_or_default();
    let text = if record.reference == Some(set.text.as_path()) {
        String::new()
    } else {
        format!(" on {}", set.text.display())
    };
    let head = format!(
        "{} against {reference}{text}: {}, {} tokens scored",
        subject(record),
        cut(perplexity),
        perplexity.tokens
    );
    let mut means = Table::new(&["", ""]);
    let mut mean = |name: &str, value: String| means.row([name.to_owned(), value]);
    mean("perplexity", estimate(perplexity.estimate(), 4));
    mean("perplexity of the reference", estimate(divergence.base.estimate(), 4));
    mean("ratio", estimate(divergence.ratio, 6));
    mean("ln ratio", estimate(divergence.ln_ratio, 6));
    mean("difference", estimate(divergence.difference, 6));
    mean("correlation", format!("{:.2} %", 100.0 * divergence.correlation));
    mean("KL divergence", estimate(divergence.kld, 6));
    mean("same top token", percent(divergence.same_top, 3));
    mean("mean Δp", percent(divergence.p_diff, 3));
    mean("RMS Δp", percent(divergence.p_diff_rms, 3));
    Some(format!("{head}\n{}\n\n{}", means.render().trim_start_matches('\n'), distribution(divergence)))
}

fn distribution(divergence: &Divergence) -> String {
    let mut table = Table::new(&["percentile", ">KLD", ">Δp %"]);
    for (kld, p_diff) in divergence.kld_percentiles.iter().zip(&divergence.p_diff_percentiles) {
        let name = match kld.percent {
            100.0 => "maximum".to_owned(),
            50.0 => "median".to_owned(),
            0.0 => "minimum".to_owned(),
            percent => percent.to_string(),
        };
        table.row([name, format!("{:.6}", kld.value), format!("{:.3}", 100.0 * p_diff.value)]);
    }
    table.render()
}

/// A line for each text and one for their average.
fn table(record: &Record<'_>) -> String {
    let compared = record.average.kld.is_some();
    let mut heads = vec!["text", ">chunks", ">tokens scored", ">perplexity"];
    if compared {
        heads.extend([">KL divergence", ">same top token", ">RMS Δp"]);
    }
    let mut table = Table::new(&heads);
    for set in &record.data_sets {
        let perplexity = &set.measured.perplexity;
        let mut row = vec![
            set.text.display().to_string(),
            perplexity.chunks.to_string(),
            perplexity.tokens.to_string(),
            estimate(perplexity.estimate(), 4),
        ];
        if let Some(divergence) = &set.measured.divergence {
            row.extend(compared_cells(divergence.kld, divergence.same_top, divergence.p_diff_rms));
        }
        table.row(row);
    }
    let average = &record.average;
    let perplexity = Estimate { value: average.perplexity, error: average.error };
    let mut row = vec!["average".to_owned(), String::new(), String::new(), estimate(perplexity, 4)];
    if let (Some(kld), Some(same_top), Some(p_diff_rms)) = (average.kld, average.same_top, average.p_diff_rms) {
        row.extend(compared_cells(kld, same_top, p_diff_rms));
    }
    table.row(row);
    format!("{}\n{}", subject(record), table.render())
}

fn compared_cells(kld: Estimate, same_top: Estimate, p_diff_rms: Estimate) -> [String; 3] {
    [estimate(kld, 6), percent(same_top, 3), percent(p_diff_rms, 3)]
}
