//! The panel of one gate.

use super::super::common::{chart, figure, panel_id, series};
use super::super::gates::top_channels;
use super::super::weights::density;
use super::{cloud, cumulative, line};
use crate::analysis::Analysis;
use crate::analysis::record::{GateDetail, Histogram, SaliencyRow};
use crate::report::page::Panel;
use crate::report::plot::{Axis, Figure, Shape};

/// Channels in a panel's table.
const TOP: usize = 10;

/// The panel of a gate.
pub(super) fn panel(analysis: &Analysis, detail: &GateDetail) -> Panel {
    let row = analysis.gates.iter().find(|gate| gate.tensor == detail.tensor);
    let name = detail.tensor.trim_end_matches(".weight");
    let kind = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, kind)| kind);
    let words = row.map(|gate| {
        let n = gate.channels;
        format!(
            "{n} output channels before {}: {} with a negative mean, {} dead, {} risky, {} critical.",
            gate.function, gate.negative_channels, gate.dead_channels, gate.risky_channels, gate.critical_channels
        )
    });
    Panel {
        id: panel_id(&detail.tensor),
        layer: row.map(|gate| gate.layer.to_string()).unwrap_or_default(),
        name: format!("{kind}, output channels"),
        words: words.unwrap_or_default(),
        figures: gate_figures(detail, name, analysis.setup.tau),
        tables: vec![top_channels(detail, TOP)],
    }
}

fn gate_figures(detail: &GateDetail, name: &str, tau: f32) -> Vec<Figure> {
    let c = &detail.channels;
    let tau = || series("τ", Shape::Upright(f64::from(tau)));
    let both = |shape: fn(&Histogram) -> Shape| {
        let after = detail.post.iter().map(|post| series("after", shape(post)));
        std::iter::once(series("before", shape(&detail.pre))).chain(after).collect::<Vec<_>>()
    };
    let mut distribution = both(density);
    distribution.push(tau());
    let mut course = both(|histogram| line(&cumulative(histogram)));
    course.push(tau());
    let spread = vec![series("channels", cloud(&c.mean, &c.std)), tau()];
    let (value, density_axis) = (|| Axis::linear("value"), Axis::log("density"));
    vec![
        figure(
            &format!("distribution.{name}"),
            "Distribution before and after",
            "All values; the vertical scale is logarithmic so that the tails are seen.",
            chart(value(), density_axis, distribution),
        ),
        figure(
            &format!("cumulative.{name}"),
            "Cumulative distribution",
            "Share of the values below.",
            chart(value(), Axis::linear("share below").including(0.0), course),
        ),
        figure(
            &format!("channel_means.{name}"),
            "Mean and spread of the channels",
            "Left of τ a channel is dead; high above it is wide enough to wake.",
            chart(Axis::linear("mean of Z"), Axis::linear("standard deviation").including(0.0), spread),
        ),
        figure(
            &format!("importances.{name}"),
            "Two importances of the channels",
            "Each point is one output channel; far from the diagonal AWQ and PRAQ disagree.",
            chart(
                Axis::linear("AWQ importance, normalised"),
                Axis::linear("PRAQ importance, normalised"),
                vec![
                    series("channels", cloud(&c.awq_normalized, &c.praq_normalized)),
                    series("equal", Shape::Line(vec![(0.0, 0.0), (1.0, 1.0)])),
                ],
            ),
        ),
        saliency(detail, name),
    ]
}

fn saliency(detail: &GateDetail, name: &str) -> Figure {
    let curve = |row: &SaliencyRow| {
        let last = row.gradient.len().saturating_sub(1).max(1) as f64;
        let points = row.gradient.iter().enumerate();
        let points: Vec<_> = points.map(|(rank, value)| (100.0 * rank as f64 / last, f64::from(*value))).collect();
        series(&format!("channel {}", row.channel), line(&points))
    };
    let parts = detail.saliency.iter().take(5).map(curve).collect();
    let plot = chart(Axis::linear("weights, % of the row, sorted"), Axis::log("E[(f'(z)·x)²]"), parts);
    figure(
        &format!("saliency.{name}"),
        "How the gradient is spread over the weights",
        "The five channels with the largest E|Z|; a steep start means few weights matter.",
        plot,
    )
}
