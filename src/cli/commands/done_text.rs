//! The text that `convert` and `quantize` end with. Words only: every figure in it is in the record too.

use std::collections::BTreeMap;

use crate::convert::{Converted, Measure, OutputError, TensorLoss};
use crate::quant::step::Kind;
use crate::util::units::{Bytes, Elapsed};

/// What was written, with its errors and fallbacks.
pub(super) fn full(converted: &Converted, bits: f64, elapsed: Elapsed) -> String {
    let files = converted.outputs.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join("\n");
    let written = format!("{files}\n{}, {bits:.3} bits a weight, in {elapsed}", Bytes(converted.bytes));
    if converted.losses.is_empty() {
        return written;
    }
    let weights: u64 = converted.losses.iter().map(|l| l.weights).sum();
    let error = converted.losses.iter().map(|l| l.error_rel * l.weights as f64).sum::<f64>() / weights.max(1) as f64;
    let worst = converted.losses.iter().max_by(|a, b| a.error_rel.total_cmp(&b.error_rel));
    let worst = worst.map_or(String::new(), |TensorLoss { name, error_rel, .. }| {
        format!(", at most {:.3} % ({name})", error_rel * 100.0)
    });
    let text = format!(
        "{written}\n{}TCQ4 tensors: {}, relative squared error of the weights {:.3} %{worst}",
        fallbacks(&converted.losses),
        converted.losses.len(),
        error * 100.0,
    );
    text + &output_errors(&converted.losses) + &coverage(&converted.losses)
}

/// Experts that the text did not cover, and columns that were not weighed together.
fn coverage(losses: &[TensorLoss]) -> String {
    const NAMED: usize = 5;
    let used = || losses.iter().filter_map(|loss| Some((&loss.name, loss.moments.as_ref()?)));
    let blocks: Vec<_> = used().filter_map(|(name, moments)| Some((name, moments.columns_together?))).collect();
    let mut text = blocks.first().map_or(String::new(), |(name, columns)| {
        format!("\n{} tensors were rounded in blocks of {columns} columns, as memory allowed ({name} ..)", blocks.len())
    });
    let experts: Vec<_> = used().filter_map(|(name, moments)| Some((name, moments.experts.as_ref()?))).collect();
    if experts.is_empty() {
        return text;
    }
    let own = experts.iter().filter(|(_, experts)| experts.own).count();
    let starved: Vec<_> = experts.iter().filter(|(_, experts)| !experts.starved.is_empty()).collect();
    let fewest = experts.iter().flat_map(|(_, experts)| &experts.rows).min().copied().unwrap_or(0);
    text += &format!(
        "\nexperts: second moments of their own in {own} of {} tensors, fewest rows of one {fewest}; starved ones in {}",
        experts.len(),
        starved.len()
    );
    for (name, experts) in starved.iter().take(NAMED) {
        let list = experts.starved.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let (few, all) = (experts.starved.len(), experts.rows.len());
        text += &format!("\n  {name}: {few} of {all} saw fewer than {} rows: {list}", experts.floor);
    }
    if starved.len() > NAMED { text + "\n  .." } else { text }
}

/// A line for each fallback and its reason, with the number of tensors.
fn fallbacks(losses: &[TensorLoss]) -> String {
    let mut counts: BTreeMap<(Kind, &str, &str, &str), usize> = BTreeMap::new();
    for step in losses.iter().flat_map(|loss| &loss.steps) {
        if let Some(because) = &step.fallback {
            *counts.entry((step.step, step.asked, step.done, because)).or_default() += 1;
        }
    }
    let line = |((kind, asked, done, because), count): ((Kind, &str, &str, &str), usize)| {
        let what = kind.option().unwrap_or_default().trim_start_matches('-');
        let instead = if asked == done { asked.to_owned() } else { format!("{done} instead of {asked}") };
        format!("{what} {instead} for {count} tensors: {because}\n")
    };
    counts.into_iter().map(line).collect()
}

/// The mean error of the outputs, where codes were chosen by it.
fn output_errors(losses: &[TensorLoss]) -> String {
    let found: Vec<_> = losses.iter().filter_map(|loss| loss.output).collect();
    if found.is_empty() {
        return String::new();
    }
    let what = match found[0].measure {
        Measure::Mean => "mean outputs",
        Measure::SecondMoment => "outputs",
    };
    let mean = |of: fn(&OutputError) -> f64| 100.0 * found.iter().map(of).sum::<f64>() / found.len() as f64;
    let rest = match losses.len() - found.len() {
        0 => String::new(),
        n => format!("; {n} tensors took the nearest codes"),
    };
    let (nearest, chosen) = (mean(|e| e.nearest), mean(|e| e.compensated));
    format!(
        "\nrelative squared error of the {what}, mean over tensors: {nearest:.3} % with the nearest codes, {chosen:.3} % with these{rest}"
    )
}
