//! Sections on the weights: how they were rounded, and where the error sits.

use super::common::{Placed, bars, by_layer, chart, distinct, dots, figure, layer_cell, median, series};
use super::outputs::name_cell;
use crate::analysis::Analysis;
use crate::analysis::record::{Histogram, Rounding, Split, SplitOutput, TensorRow, Test};
use crate::report::page::{Block, Section};
use crate::report::plot::{Axis, Chart, Figure, Plot, Shape};
use crate::report::table::{Cell, Column, Table};

/// Section: how weights were rounded.
pub(super) fn rounding(analysis: &Analysis) -> Section {
    Section {
        id: "rounding".into(),
        title: "Rounding of the weights".into(),
        words: vec![
            "How the weights of the quantised tensors were rounded, after scaling, ordering and rotation: up, down, or exactly on a step. The error is counted in steps of its group of 32, so −½ to ½ is plain rounding; beyond that a weight was clipped to the range of the codes or moved on purpose.".into(),
            "A fair rounding sends as many weights up as down. With any step, errors are level between −½ and ½; the encoder searches for the step with the least error, which heaps them around 0.".into(),
        ],
        follows: "A signed mean away from 0 is a bias that adds up over a row. Many clipped weights are the price of a smaller step; the encoder takes it only where the squared error falls.".into(),
        blocks: vec![
            Block::Figures([all_errors(analysis), Some(directions(analysis)), Some(bias(analysis))].into_iter().flatten().collect()),
            Block::Table(rounding_table(analysis)),
        ],
        ..Section::default()
    }
}

/// The edges and the shares of the bins of a histogram, as heights of a density.
pub(super) fn density(histogram: &Histogram) -> Shape {
    let bins = histogram.counts.len();
    let width = (f64::from(histogram.high) - f64::from(histogram.low)) / bins.max(1) as f64;
    let edges = (0..=bins).map(|bin| f64::from(histogram.low) + width * bin as f64).collect();
    let total = histogram.counts.iter().sum::<u64>() + histogram.below + histogram.above;
    let height = |count: &u64| *count as f64 / (total.max(1) as f64 * width.max(f64::MIN_POSITIVE));
    Shape::Steps(edges, histogram.counts.iter().map(height).collect())
}

fn all_errors(analysis: &Analysis) -> Option<Figure> {
    let shape = density(analysis.rounding_histogram.as_ref()?);
    let plot = chart(
        Axis::linear("rounding error, in steps"),
        Axis::linear("density").including(0.0),
        vec![series("all weights", shape), series("±½", Shape::Upright(0.5)), series("", Shape::Upright(-0.5))],
    );
    Some(figure(
        "rounding_error",
        "Rounding errors of all measured weights",
        "Between the upright lines are errors of plain rounding; what is outside was clipped or moved.",
        plot,
    ))
}

fn roundings(analysis: &Analysis) -> Vec<(&TensorRow, &Rounding)> {
    analysis.tensors.iter().filter_map(|tensor| Some((tensor, tensor.rounding.as_ref()?))).collect()
}

fn by_kind(analysis: &Analysis, value: fn(&Rounding) -> f32) -> Shape {
    let all = roundings(analysis);
    let of = |kind: &String| median(all.iter().filter(|(t, _)| t.kind == *kind).map(|(_, r)| value(r)));
    bars(kinds(analysis).iter().map(of))
}

fn kinds(analysis: &Analysis) -> Vec<String> {
    distinct(roundings(analysis).iter().map(|(tensor, _)| tensor.kind.as_str()))
}

fn share(part: u64, rounding: &Rounding) -> f32 {
    (part as f64 / rounding.weights.max(1) as f64) as f32
}

fn directions(analysis: &Analysis) -> Figure {
    let parts = vec![
        series("up", by_kind(analysis, |r| share(r.rounded_up, r))),
        series("down", by_kind(analysis, |r| share(r.rounded_down, r))),
        series("exact", by_kind(analysis, |r| share(r.exact, r))),
        series("no step", by_kind(analysis, |r| share(r.no_step, r))),
        series("clipped", by_kind(analysis, |r| share(r.clipped, r))),
    ];
    let kinds = kinds(analysis);
    let plot = Plot::Chart(Chart {
        wide: kinds.len() > 4,
        x: Axis::named("", kinds),
        y: Axis::linear("share of the weights").including(0.0),
        series: parts,
    });
    figure(
        "rounding_directions",
        "Up, down, exact, no step, clipped",
        "Median over the layers of each kind. Groups of equal weights, such as zeros of a padding, need no step. Clipped weights are also counted as up or down.",
        plot,
    )
}

fn bias(analysis: &Analysis) -> Figure {
    let points = roundings(analysis);
    let points = points.iter().filter_map(|(t, r)| Some((f64::from(t.layer?), f64::from(r.signed_mean))));
    let parts = vec![series("tensors", Shape::Points(points.collect())), series("no bias", Shape::Level(0.0))];
    let plot = chart(Axis::whole("Layer"), Axis::linear("mean error, in steps").including(0.0), parts);
    figure(
        "rounding_bias",
        "Bias of the rounding by layer",
        "Each point is one tensor; points far from the line round with a preference.",
        plot,
    )
}

const ROUNDING_COLUMNS: [Column; 23] = [
    Column::text("layer_name", "Tensor", ""),
    Column::choice("layer", "Layer", ""),
    Column::choice("kind", "Kind", ""),
    Column::number("total_weights", "Weights", "weights looked at"),
    Column::file("rounded_up"),
    Column::file("rounded_down"),
    Column::file("exact"),
    Column::number("rounded_up_pct", "Up, %", "percent rounded up by more than a millionth of a step"),
    Column::number("rounded_down_pct", "Down, %", ""),
    Column::number("exact_pct", "Exact, %", ""),
    Column::number("rounding_mag_mean", "|e| mean", "magnitude of the error in units of the scaled weight"),
    Column::file("rounding_mag_std"),
    Column::number("rounding_mag_max", "|e| max", ""),
    Column::file("rounding_mag_p90"),
    Column::number("rounding_mag_p99", "|e| p99", "99th percentile"),
    Column::number("steps_mean", "Steps, mean", "magnitude in steps"),
    Column::file("steps_std"),
    Column::number("steps_max", "Steps, max", ""),
    Column::file("steps_p90"),
    Column::number("steps_p99", "Steps, p99", ""),
    Column::number("signed_mean", "Bias", "mean of the signed error, in steps"),
    Column::number("clipped", "Clipped", "weights beyond the range of the codes"),
    Column::file("no_step"),
];

fn rounding_table(analysis: &Analysis) -> Table {
    let row = |(tensor, r): (&TensorRow, &Rounding)| {
        let percent = |part: u64| Cell::Real(100.0 * share(part, r));
        let mut row = vec![
            name_cell(analysis, &tensor.name, tensor.group.as_deref()),
            layer_cell(tensor.layer),
            Cell::text(&tensor.kind),
            Cell::Count(r.weights),
            Cell::Count(r.rounded_up),
            Cell::Count(r.rounded_down),
            Cell::Count(r.exact),
            percent(r.rounded_up),
            percent(r.rounded_down),
            percent(r.exact),
        ];
        let magnitudes = [r.in_weights, r.in_steps].into_iter().flat_map(|m| [m.mean, m.std, m.max, m.p90, m.p99]);
        row.extend(magnitudes.map(Cell::Real));
        row.extend([Cell::Real(r.signed_mean), Cell::Count(r.clipped), Cell::Count(r.no_step)]);
        row
    };
    let rows = roundings(analysis).into_iter().map(row).collect();
    Table::new("rounding_stats", "How the weights of every measured tensor were rounded.", &ROUNDING_COLUMNS, rows)
}

/// Section: whether the error sits in important channels.
pub(super) fn split(analysis: &Analysis) -> Section {
    Section {
        id: "split".into(),
        title: "Error by importance of the channels".into(),
        words: vec![
            "Whether the error sits where it hurts. The half of the channels with the largest E[x²] is called important; the output error is computed for each half alone and for both together.".into(),
            "The ratio compares the two halves: 1 means that both add as much, more than 1 that the important half dominates. The tests ask whether the errors of the weights themselves differ between the halves: a small p says that chance does not explain it.".into(),
        ],
        follows: "Channel scales aim at a ratio near 1: precision moves to the channels that matter. A ratio far above 1 leaves room for them.".into(),
        blocks: vec![
            Block::Figures(vec![ratios(analysis), halves(analysis)]),
            Block::Table(split_table(analysis)),
        ],
        ..Section::default()
    }
}

fn splits(analysis: &Analysis) -> Vec<(&TensorRow, &Split)> {
    analysis.tensors.iter().filter_map(|tensor| Some((tensor, tensor.split.as_ref()?))).collect()
}

fn ratios(analysis: &Analysis) -> Figure {
    let ratio = |split: &Split| split.output.and_then(|output| output.ratio);
    let placed = splits(analysis).into_iter();
    let grid = by_layer(placed.map(|(t, split)| Placed { kind: &t.kind, layer: t.layer, value: ratio(split) }));
    let title = "Output error of important over other channels";
    let Some(mut points) = grid.points() else {
        let (caption, shades) = ("Each cell is one tensor; at 1 both halves add as much.", grid.around_1());
        return grid.heat("split_ratio", title, caption, "Ratio", shades);
    };
    points.push(series("equal", Shape::Level(1.0)));
    let plot = chart(Axis::whole("Layer"), Axis::log("important / other"), points);
    figure("split_ratio", title, "Each point is one tensor; at the level line both halves add as much.", plot)
}

fn halves(analysis: &Analysis) -> Figure {
    let all = splits(analysis);
    let kinds = distinct(all.iter().map(|(tensor, _)| tensor.kind.as_str()));
    let part = |value: fn(&SplitOutput) -> f32| {
        let of = |kind: &String| {
            let same = all.iter().filter(|(tensor, _)| tensor.kind == *kind);
            median(same.filter_map(|(_, split)| split.output.as_ref().map(value)))
        };
        dots(kinds.iter().map(of))
    };
    let parts = vec![
        series("important", part(|o| o.mse_important)),
        series("other", part(|o| o.mse_other)),
        series("together", part(|o| o.mse_total)),
    ];
    let plot = chart(Axis::named("", kinds.clone()), Axis::log("mean squared error"), parts);
    figure(
        "split_mse",
        "Mean squared output error by half",
        "Median over the layers of each kind, in units of the output squared.",
        plot,
    )
}

const SPLIT_COLUMNS: [Column; 26] = [
    Column::text("tensor", "Tensor", ""),
    Column::choice("layer", "Layer", ""),
    Column::choice("kind", "Kind", ""),
    Column::number("important_channels", "Channels", "channels called important"),
    Column::number("mse_important", "MSE, important", "mean squared output error of the important half"),
    Column::number("mse_other", "MSE, other", ""),
    Column::number("mse_total", "MSE, together", ""),
    Column::number("ratio", "Ratio", "important over other"),
    Column::file("mean_important"),
    Column::file("mean_other"),
    Column::file("mean_total"),
    Column::number("channel_ratio", "Ratio a channel", "mean per-channel error, important over other"),
    Column::file("dw_important_mean"),
    Column::file("dw_important_std"),
    Column::number("dw_important_mean_abs", "|ΔW|, important", "mean magnitude of the weights' error"),
    Column::file("dw_other_mean"),
    Column::file("dw_other_std"),
    Column::number("dw_other_mean_abs", "|ΔW|, other", ""),
    Column::file("signed_t"),
    Column::number("signed_t_p", "p, signed", "t-test of the signed errors"),
    Column::file("abs_ks"),
    Column::number("abs_ks_p", "p, |ΔW|", "Kolmogorov-Smirnov test of the magnitudes"),
    Column::file("channel_t"),
    Column::file("channel_t_p"),
    Column::file("channel_ks"),
    Column::number("channel_ks_p", "p, channels", "Kolmogorov-Smirnov test of the per-channel errors"),
];

fn split_table(analysis: &Analysis) -> Table {
    let rows = splits(analysis).into_iter().map(|(tensor, split)| split_row(analysis, tensor, split)).collect();
    Table::new("error_split", "Error by importance of the channels, every measured tensor.", &SPLIT_COLUMNS, rows)
}

fn split_row(analysis: &Analysis, tensor: &TensorRow, split: &Split) -> Vec<Cell> {
    let output = |part: fn(&SplitOutput) -> f32| Cell::real(split.output.as_ref().map(part));
    let test = |test: Test| [Cell::real(test.statistic), Cell::real(test.p)];
    let mut row = vec![
        name_cell(analysis, &tensor.name, tensor.group.as_deref()),
        layer_cell(tensor.layer),
        Cell::text(&tensor.kind),
        Cell::Count(split.important_channels.into()),
        output(|o| o.mse_important),
        output(|o| o.mse_other),
        output(|o| o.mse_total),
        Cell::real(split.output.and_then(|o| o.ratio)),
        output(|o| o.mean_important),
        output(|o| o.mean_other),
        output(|o| o.mean_total),
        Cell::real(split.channel_ratio),
    ];
    let errors = [split.important, split.other].into_iter().flat_map(|e| [e.mean, e.std, e.mean_abs]);
    row.extend(errors.map(Cell::Real));
    row.extend([split.signed_t, split.abs_ks, split.channel_t, split.channel_ks].into_iter().flat_map(test));
    row
}
