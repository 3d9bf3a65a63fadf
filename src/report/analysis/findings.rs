//! What follows from the numbers, in sentences: what to look at first, and what is as it should be.

use super::common::{counted, listed, median, path_words};
use super::steps::gain;
use crate::analysis::Analysis;
use crate::analysis::record::TensorRow;
use crate::report::page::{Finding, Weight};
use crate::report::plot::short;
use crate::report::table::percent;

/// A worst tensor is worth a warning from this many times the median on.
const FAR: f32 = 4.0;

/// Everything worth saying, warnings first.
pub(super) fn all(analysis: &Analysis) -> Vec<Finding> {
    let found = [
        worst(analysis),
        Some(fallbacks(analysis)),
        preparation(analysis),
        paths(analysis),
        scales(analysis),
        starved(analysis),
        critical(analysis),
        unscaled(analysis),
        structure(analysis),
    ];
    let notices = analysis.notices.iter().map(|notice| Finding {
        weight: Weight::Note,
        title: "From the analysis".into(),
        text: super::common::sentence(notice),
        section: String::new(),
    });
    let mut all: Vec<Finding> = found.into_iter().flatten().chain(notices).chain(gaps(analysis)).collect();
    all.sort_by_key(|finding| finding.weight); // stable: within a weight the order above stays
    all
}

fn finding(weight: Weight, title: impl Into<String>, text: String, section: &str) -> Finding {
    Finding { weight, title: title.into(), text, section: section.to_owned() }
}

fn number(value: f32) -> String {
    short(f64::from(value))
}

fn worst(analysis: &Analysis) -> Option<Finding> {
    let mut measured: Vec<(f32, &TensorRow)> =
        analysis.tensors.iter().filter_map(|tensor| Some((tensor.output?.assumed, tensor))).collect();
    measured.sort_by(|a, b| b.0.total_cmp(&a.0));
    let middle = median(measured.iter().map(|(error, _)| *error))?;
    let (error, tensor) = measured.first()?;
    let next: Vec<String> = measured
        .iter()
        .skip(1)
        .take(4)
        .map(|(error, tensor)| format!("{} ({})", tensor.name, number(*error)))
        .collect();
    let next = if next.is_empty() { String::new() } else { format!(" Next: {}.", next.join(", ")) };
    let times = if middle > 0.0 { error / middle } else { 1.0 };
    let text = format!(
        "With {} its output is off by a relative error of {}, {} times the median of {} ({}).{next}",
        path_words(&analysis.setup.activations),
        number(*error),
        number(times),
        counted(measured.len(), "tensor"),
        number(middle)
    );
    let weight = if times > FAR { Weight::Warning } else { Weight::Note };
    Some(finding(weight, format!("Worst tensor: {}", tensor.name), text, "output"))
}

fn fallbacks(analysis: &Analysis) -> Finding {
    let stand_ins: Vec<&TensorRow> = analysis.tensors.iter().filter(|tensor| tensor.substituted).collect();
    if stand_ins.is_empty() {
        return finding(
            Weight::Good,
            "No fallbacks",
            "No tensor had to take a type other than the one planned for it.".into(),
            "types",
        );
    }
    let names: Vec<&str> = stand_ins.iter().map(|tensor| tensor.name.as_str()).collect();
    let weights: u64 = stand_ins.iter().map(|tensor| tensor.weights).sum();
    let all: u64 = analysis.tensors.iter().map(|tensor| tensor.weights).sum();
    let text = format!(
        "{} of the weights are in a type that stands in for one that does not fit: {}.",
        percent(weights as f64 / all.max(1) as f64),
        listed(&names, 4)
    );
    finding(Weight::Warning, format!("Fallbacks: {}", counted(stand_ins.len(), "tensor")), text, "types")
}

fn preparation(analysis: &Analysis) -> Option<Finding> {
    let mut gains: Vec<(f32, &str)> =
        analysis.groups.iter().filter_map(|group| Some((gain(group)?, group.key.as_str()))).collect();
    gains.sort_by(|a, b| b.0.total_cmp(&a.0));
    let middle = median(gains.iter().map(|(gain, _)| *gain))?;
    let worse: Vec<&str> = gains.iter().filter(|(gain, _)| *gain > 1.01).map(|(_, key)| *key).collect();
    let changed = percent(f64::from((middle - 1.0).abs()));
    let direction = if middle <= 1.0 { "less" } else { "more" };
    let rest = match worse.len() {
        0 => "No input got worse.".to_owned(),
        n => format!("It made {n} of {} worse: {}.", gains.len(), listed(&worse, 4)),
    };
    let text = format!(
        "Scaling and ordering leave the median input with {changed} {direction} INT4 error than the Hadamard transform alone. {rest}"
    );
    let weight = if middle < 0.99 { Weight::Good } else { Weight::Note };
    Some(finding(weight, "What the preparation brought", text, "steps"))
}

fn paths(analysis: &Analysis) -> Option<Finding> {
    let of = |part: fn(&crate::analysis::record::OutputErrors) -> f32| {
        median(analysis.tensors.iter().filter_map(|tensor| tensor.output.as_ref().map(part)))
    };
    let (weights, eight, four) = (of(|o| o.weights_only)?, of(|o| o.int8)?, of(|o| o.int4)?);
    let text = format!(
        "Median output error: {} with exact activations, {} with INT8, {} with INT4. INT8 adds {} to what the weights cost, INT4 {}.",
        number(weights),
        number(eight),
        number(four),
        percent(f64::from(eight / weights - 1.0)),
        percent(f64::from(four / weights - 1.0))
    );
    Some(finding(Weight::Note, "What the activations cost", text, "output"))
}

fn scales(analysis: &Analysis) -> Option<Finding> {
    let rows: Vec<_> = analysis.groups.iter().filter_map(|group| group.alpha.as_ref()).collect();
    let closed = median(rows.iter().map(|row| row.error_closed_form / row.error_unscaled))?;
    let best = median(rows.iter().map(|row| row.best_error / row.error_unscaled))?;
    let text = format!(
        "On the median of {} the closed form leaves {} of the unscaled error, the best exponent of AWQ's grid {}.",
        counted(rows.len(), "input"),
        percent(f64::from(closed)),
        percent(f64::from(best))
    );
    let weight = if closed < 1.0 { Weight::Good } else { Weight::Note };
    Some(finding(weight, "What channel scales bring", text, "scales"))
}

fn starved(analysis: &Analysis) -> Option<Finding> {
    let total: usize = analysis.experts.iter().map(|row| row.tokens.len()).sum();
    let starved: usize = analysis.experts.iter().map(|row| row.starved.len()).sum();
    let layers: Vec<String> =
        analysis.experts.iter().filter(|row| !row.starved.is_empty()).map(|row| row.layer.to_string()).collect();
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    match (total, starved) {
        (0, _) => None,
        (_, 0) => Some(finding(
            Weight::Good,
            "Every expert was seen",
            format!("None of {} is below the threshold.", counted(total, "expert")),
            "experts",
        )),
        _ => {
            let text = format!(
                "{starved} of {total} experts saw too few tokens, in layers {}. Use more or broader calibration text.",
                listed(&layers, 8)
            );
            Some(finding(Weight::Warning, "Starved experts", text, "experts"))
        }
    }
}

fn critical(analysis: &Analysis) -> Option<Finding> {
    let channels: u64 = analysis.gates.iter().map(|gate| u64::from(gate.channels)).sum();
    let count: u64 = analysis.gates.iter().map(|gate| u64::from(gate.critical_channels)).sum();
    let dead: u64 = analysis.gates.iter().map(|gate| u64::from(gate.dead_channels)).sum();
    let most = analysis.gates.iter().max_by_key(|gate| (gate.critical_channels, std::cmp::Reverse(gate.layer)))?;
    let share = |part: u64| percent(part as f64 / channels.max(1) as f64);
    let rest = if count > 0 {
        format!(" Most of them in {} ({}).", most.tensor, most.critical_channels)
    } else {
        String::new()
    };
    let text = format!(
        "{} of the gates' output channels are dead, {} critical: silent, but near enough to the edge for rounding to wake them.{rest}",
        share(dead),
        share(count)
    );
    Some(finding(Weight::Note, format!("Critical channels: {count}"), text, "gates"))
}

fn unscaled(analysis: &Analysis) -> Option<Finding> {
    let without = analysis.groups.iter().filter(|group| group.unscaled.is_some() || group.unordered.is_some());
    let without: Vec<&str> = without.map(|group| group.key.as_str()).collect();
    let text = format!(
        "These inputs do not have the scale or the order that was wanted: {}. The table says why.",
        listed(&without, 6)
    );
    (!without.is_empty()).then(|| {
        finding(Weight::Note, format!("Not prepared as wanted: {}", counted(without.len(), "input")), text, "scales")
    })
}

fn structure(analysis: &Analysis) -> Option<Finding> {
    let estimated = analysis.groups.iter().filter(|group| group.grounds == "structure").count();
    let text = "Without statistics of real text, choices rest on an estimate from the weights. Run `tcq4 calibrate --stats` and give its file to get measured numbers.".to_owned();
    (estimated > 0).then(|| {
        finding(
            Weight::Warning,
            format!("Estimated from structure: {}", counted(estimated, "input")),
            text,
            "importance",
        )
    })
}

fn gaps(analysis: &Analysis) -> Option<Finding> {
    let parts: Vec<&str> = analysis.unmeasured.iter().map(|gap| gap.reason.as_str()).collect();
    let text = format!("{}. The sections say what is missing.", listed(&parts, 3));
    (!parts.is_empty())
        .then(|| finding(Weight::Note, "Not everything could be measured", super::common::sentence(&text), ""))
}
