//! An analysis as text: what matters first, a table a subject.

use std::collections::BTreeMap;

use crate::analysis::Analysis;
use crate::analysis::record::{GateRow, GroupRow, OutputErrors, Step, StepRow, TensorRow};
use crate::cli::table::{Table, count};
use crate::util::units::Bytes;

/// Tensors shown as the worst.
const WORST: usize = 5;
/// Names shown in a list.
const NAMED: usize = 8;

/// All of it.
pub(super) fn render(analysis: &Analysis) -> String {
    let sections = [
        head(analysis),
        kinds(&analysis.tensors),
        worst(&analysis.tensors, &analysis.setup.activations),
        steps(&analysis.groups),
        choices(analysis),
        gates(&analysis.gates),
        experts(analysis),
        unmeasured(analysis),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn head(analysis: &Analysis) -> String {
    let (model, setup) = (&analysis.model, &analysis.setup);
    let bits = model.bytes as f64 * 8.0 / model.weights.max(1) as f64;
    let written = model.converted.as_deref().unwrap_or("as it would be converted");
    let mut text = format!(
        "{}: {} of {} layers, {} weights, {} -> {} ({bits:.3} bits a weight), {written}",
        model.path,
        model.architecture,
        model.layers,
        count(model.weights),
        Bytes(model.source_bytes),
        Bytes(model.bytes),
    );
    text += &match &setup.statistics {
        Some(from) => format!(
            "\nstatistics: {from}, {} chunks of {} tokens{}",
            setup.chunks,
            setup.chunk_tokens,
            if setup.rows_held_out { "; sample rows from text that the sums have not seen" } else { "" }
        ),
        None => "\nno statistics: pass --stats FILE or -c TEXT to see activations and outputs".to_string(),
    };
    text + &format!(
        "\nscales {}, order {}, encoder {}, activations {}; at most {} output rows of a matrix and {} sample rows",
        setup.scales, setup.order, setup.encoder, setup.activations, setup.output_rows, setup.sample_rows
    )
}

/// Squared relative errors in percent.
fn percent(value: Option<f32>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{:.3}", value * 100.0))
}

/// One line a kind of tensor.
fn kinds(tensors: &[TensorRow]) -> String {
    let mut kinds: BTreeMap<&str, Vec<&TensorRow>> = BTreeMap::new();
    for row in tensors.iter().filter(|row| row.error_rel.is_some()) {
        kinds.entry(&row.kind).or_default().push(row);
    }
    if kinds.is_empty() {
        return "no tensor is TCQ4".into();
    }
    let mut table =
        Table::new(&["tensors", ">count", ">weights %", ">output %", ">with int8", ">int4-group32", ">int4"]);
    for (kind, rows) in kinds {
        let output =
            |of: fn(&OutputErrors) -> f32| percent(mean(rows.iter().filter_map(|r| r.output.as_ref()).map(of)));
        table.row([
            kind.to_string(),
            rows.len().to_string(),
            percent(mean(rows.iter().filter_map(|row| row.error_rel))),
            output(|o| o.weights_only),
            output(|o| o.int8),
            output(|o| o.int4_group32),
            output(|o| o.int4),
        ]);
    }
    format!(
        "squared error, relative: of the weights, and of the outputs by the runtime's activations\n{}",
        table.render()
    )
}

fn mean(values: impl Iterator<Item = f32>) -> Option<f32> {
    let (sum, count) = values.fold((0.0f64, 0u32), |(sum, count), value| (sum + f64::from(value), count + 1));
    (count > 0).then(|| (sum / f64::from(count)) as f32)
}

/// The tensors with the largest output errors under the activations that are assumed.
fn worst(tensors: &[TensorRow], activations: &str) -> String {
    let error = |row: &TensorRow| row.output.map(|output| output.assumed).or(row.error_rel);
    let mut rows: Vec<&TensorRow> = tensors.iter().filter(|row| error(row).is_some()).collect();
    if rows.len() <= WORST {
        return String::new();
    }
    rows.sort_by(|a, b| error(b).unwrap_or(0.0).total_cmp(&error(a).unwrap_or(0.0)));
    let mut table = Table::new(&[
        "worst tensors",
        ">weights %",
        &format!(">output %, activations {activations}"),
        ">important channels' part of the weights' error %",
    ]);
    for row in rows.into_iter().take(WORST) {
        let split = row.split.as_ref().and_then(|split| split.output);
        let part = split.filter(|s| s.mse_total > 0.0).map(|s| s.mse_important / (s.mse_important + s.mse_other));
        let part = part.map_or_else(|| "-".into(), |part| format!("{:.1}", part * 100.0));
        let output = percent(row.output.map(|output| output.assumed));
        table.row([row.name.clone(), percent(row.error_rel), output, part]);
    }
    table.render()
}

/// The means over the groups, step by step.
fn steps(groups: &[GroupRow]) -> String {
    let rows = |step: Step| groups.iter().flat_map(move |group| group.steps.iter().filter(move |row| row.step == step));
    if rows(Step::Plain).next().is_none() {
        return String::new();
    }
    let heads = [
        "activations, mean over groups",
        ">victims %",
        ">of int4-group32",
        ">max/rms of 256",
        ">int4 error %",
        ">int8 error %",
    ];
    let mut table = Table::new(&heads);
    for step in Step::ALL {
        let of = |value: fn(&StepRow) -> f32| mean(rows(step).map(value));
        let label = match step {
            Step::Plain => "as they are",
            Step::Scaled => "scaled",
            Step::Ordered => "scaled, ordered",
            Step::Rotated => "scaled, ordered, rotated",
            Step::RotatedPlain => "rotated only",
        };
        table.row([
            label.to_string(),
            of(|r| r.victims_256).map_or_else(String::new, |v| format!("{:.1}", v * 100.0)),
            of(|r| r.victims_32).map_or_else(String::new, |v| format!("{:.1}", v * 100.0)),
            of(|r| r.crest_256).map_or_else(String::new, |v| format!("{v:.2}")),
            percent(of(|r| r.error_int4)),
            percent(of(|r| r.error_int8)),
        ]);
    }
    table.render()
}

/// Substitutions, and groups that could not be scaled or ordered.
fn choices(analysis: &Analysis) -> String {
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for row in analysis.tensors.iter().filter(|row| row.substituted) {
        reasons.entry(format!("{} {}", row.to, row.reason)).or_default().push(&row.name);
    }
    for row in &analysis.groups {
        if let Some(reason) = &row.unscaled {
            reasons.entry(format!("not scaled: {reason}")).or_default().push(&row.key);
        }
        if let Some(reason) = &row.unordered {
            reasons.entry(format!("not ordered: {reason}")).or_default().push(&row.key);
        }
    }
    let line = |(reason, names): (String, Vec<&str>)| format!("  {reason}: {}", list(&names));
    let lines: Vec<String> = reasons.into_iter().map(line).collect();
    if lines.is_empty() { String::new() } else { format!("fallbacks\n{}", lines.join("\n")) }
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED { format!("{shown} and {} more", names.len() - NAMED) } else { shown }
}

/// Numbers, the first few of many.
pub(super) fn numbers(numbers: &[u32]) -> String {
    let names: Vec<String> = numbers.iter().map(u32::to_string).collect();
    list(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn gates(gates: &[GateRow]) -> String {
    let sum = |of: fn(&GateRow) -> u32| gates.iter().map(|gate| u64::from(of(gate))).sum::<u64>();
    let Some(worst) = gates.iter().max_by_key(|gate| gate.critical_channels) else { return String::new() };
    let mut text = format!(
        "channels before the activation function ({}): {}, of them dead {}, risky {}, critical {}",
        worst.function,
        sum(|g| g.channels),
        sum(|g| g.dead_channels),
        sum(|g| g.risky_channels),
        sum(|g| g.critical_channels)
    );
    if worst.critical_channels > 0 {
        text += &format!(" (most in {}: {})", worst.tensor, worst.critical_channels);
    }
    if let Some(suppression) = mean(gates.iter().filter_map(|gate| gate.suppression)) {
        text +=
            &format!("\nof channels with a negative mean {:.1} % of the magnitude gets through", suppression * 100.0);
    }
    text
}

fn experts(analysis: &Analysis) -> String {
    let rows = &analysis.experts;
    let Some(least) = rows.iter().filter_map(|row| row.min_share).reduce(f32::min) else {
        return if rows.is_empty() { String::new() } else { "no expert has seen a token".into() };
    };
    let starved: Vec<String> = rows
        .iter()
        .filter(|row| !row.starved.is_empty())
        .map(|row| format!("  layer {}: {}", row.layer, numbers(&row.starved)))
        .collect();
    let head = format!("experts: {} layers; the least used expert saw {least:.2} of an even share", rows.len());
    let wanted = match (analysis.setup.min_expert_tokens, analysis.setup.min_expert_share) {
        (None, None) => "never used",
        _ => "below the threshold",
    };
    if starved.is_empty() { head } else { format!("{head}\nexperts {wanted}\n{}", starved.join("\n")) }
}

fn unmeasured(analysis: &Analysis) -> String {
    let line = |gap: &crate::analysis::record::Unmeasured| {
        let section = format!("{:?}", gap.section).to_lowercase();
        match gap.count {
            0 => format!("  {section}: {}", gap.reason),
            n => format!("  {section}: {} ({n}: {})", gap.reason, short(&gap.subjects, n)),
        }
    };
    let lines: Vec<String> = analysis.unmeasured.iter().map(line).collect();
    if lines.is_empty() { String::new() } else { format!("not measured\n{}", lines.join("\n")) }
}

/// The first names of `count`.
fn short(names: &[String], count: u32) -> String {
    let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    if count > 3 { format!("{shown}, …") } else { shown }
}
