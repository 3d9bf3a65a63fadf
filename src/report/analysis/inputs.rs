//! Sections on the channels of inputs: how unevenly they matter, and what channel scales bring.

use super::common::{BY_VALUE, Placed, by_layer, chart, distinct, figure, layer_cell, median, panel_id, series};
use crate::analysis::Analysis;
use crate::analysis::record::{GroupRow, Importance, Shares};
use crate::report::page::{Block, Section};
use crate::report::plot::{Axis, Figure, Shape};
use crate::report::table::{Cell, Column, Table};

/// Section: how unevenly channels matter.
pub(super) fn importance(analysis: &Analysis) -> Section {
    Section {
        id: "importance".into(),
        title: "Importance of channels".into(),
        words: vec![
            "How the size of an input is spread over its channels: E|x|, E[x²] and max|x| over the calibration tokens. A share says how much of the sum the largest channels hold.".into(),
            "An even input of 1 000 channels would hold 1 % in its largest 1 %. Values far above mean that few channels dominate, so rounding with one scale for many channels loses the others.".into(),
        ],
        follows: "Inputs with a large share gain most from channel scales and from dealing large channels out over the blocks; whether they did is in the next section.".into(),
        blocks: vec![
            Block::Figures(std::iter::once(share_map(analysis)).chain(rank_agreement(analysis)).collect()),
            Block::Table(importance_table(analysis)),
        ],
        ..Section::default()
    }
}

fn share_map(analysis: &Analysis) -> Figure {
    let share = |group: &GroupRow| group.importance.as_ref().map(|i| i.mean_sq.top_1_percent);
    let placed = analysis.groups.iter().map(|g| Placed { kind: &g.kind, layer: g.layer, value: share(g) });
    by_layer(placed).heat(
        "importance_top_share",
        "Share of E[x²] in the largest 1 % of the channels",
        "Each cell is one input; bright cells are dominated by few channels.",
        "Share",
        BY_VALUE,
    )
}

/// How well the cheap measures order the channels as E[x²] does.
fn rank_agreement(analysis: &Analysis) -> Option<Figure> {
    type Measure = (&'static str, fn(&Importance) -> Option<f32>);
    let measures: [Measure; 3] =
        [("E|x|", |i| i.spearman_abs_sq), ("max|x|", |i| i.spearman_max_sq), ("|E[x]|", |i| i.spearman_mean_sq)];
    let kinds = distinct(analysis.groups.iter().map(|group| group.kind.as_str()));
    let five = |kind: &str, measure: fn(&Importance) -> Option<f32>| {
        let same = analysis.groups.iter().filter(|group| group.kind == kind);
        median(same.filter_map(|group| group.importance.as_ref().and_then(measure)))
    };
    let bars =
        measures.map(|(name, measure)| series(name, super::common::bars(kinds.iter().map(|kind| five(kind, measure)))));
    let plot =
        chart(Axis::named("", kinds.clone()), Axis::linear("Spearman's ρ with E[x²]").including(0.0), bars.into());
    let caption = "Median over the layers. Near 1: the measure puts the channels in the same order as E[x²], so either may drive scales and orders.";
    (!kinds.is_empty()).then(|| {
        figure("importance_rank_agreement", "Do other measures agree on which channels matter?", caption, plot)
    })
}

const IMPORTANCE_COLUMNS: [Column; 25] = [
    Column::text("group", "Input", "the tensors that read one activation"),
    Column::choice("layer", "Layer", ""),
    Column::choice("kind", "Kind", ""),
    Column::number("columns", "Channels", ""),
    Column::number("rows_seen", "Rows", "token rows behind the sums"),
    Column::number("rms", "RMS", "root of the mean of E[x²]"),
    Column::number("sq_top_1", "Top 1", "share of ΣE[x²] in the largest channel"),
    Column::number("sq_top_10", "Top 10", "in the 10 largest"),
    Column::file("sq_top_100"),
    Column::number("sq_top_1_percent", "Top 1 %", "in the largest 1 % of the channels"),
    Column::number("sq_top_10_percent", "Top 10 %", "in the largest 10 %"),
    Column::number("sq_top_50_percent", "Top 50 %", "in the larger half"),
    Column::file("abs_top_1"),
    Column::file("abs_top_10"),
    Column::file("abs_top_100"),
    Column::number("abs_top_1_percent", "E|x| top 1 %", "share of ΣE|x| in the largest 1 %"),
    Column::file("abs_top_10_percent"),
    Column::file("abs_top_50_percent"),
    Column::number("peak_to_median", "Peak/median", "largest E[x²] over the median"),
    Column::file("signed_mean"),
    Column::number("offset_share", "Offset", "share of the energy that is a constant offset"),
    Column::number("spearman_abs_sq", "ρ(E|x|)", "Spearman's rank correlation of E|x| and E[x²]"),
    Column::file("spearman_max_sq"),
    Column::file("spearman_mean_sq"),
    Column::number("zero_channels", "Zero", "channels that were zero in every row"),
];

fn importance_table(analysis: &Analysis) -> Table {
    let row = |group: &GroupRow| {
        let importance = group.importance.as_ref()?;
        let mut row = vec![
            Cell::Link(group.key.clone(), panel_id(&group.key)),
            layer_cell(group.layer),
            Cell::text(&group.kind),
            Cell::Count(group.columns.into()),
            Cell::Count(group.rows_seen),
            Cell::Real(importance.rms),
        ];
        if analysis.group_details.iter().all(|detail| detail.key != group.key) {
            row[0] = Cell::text(&group.key);
        }
        row.extend(shares(Some(importance.mean_sq)));
        row.extend(shares(importance.mean_abs));
        row.extend([
            Cell::real(importance.peak_to_median),
            Cell::real(importance.signed_mean),
            Cell::share(importance.offset_share),
            Cell::real(importance.spearman_abs_sq),
            Cell::real(importance.spearman_max_sq),
            Cell::real(importance.spearman_mean_sq),
            Cell::Count(importance.zero_channels.into()),
        ]);
        Some(row)
    };
    let rows = analysis.groups.iter().filter_map(row).collect();
    Table::new(
        "channel_importance",
        "How the importance of the channels is spread in every input.",
        &IMPORTANCE_COLUMNS,
        rows,
    )
}

fn shares(shares: Option<Shares>) -> [Cell; 6] {
    let parts: [fn(Shares) -> f32; 6] =
        [|s| s.top_1, |s| s.top_10, |s| s.top_100, |s| s.top_1_percent, |s| s.top_10_percent, |s| s.top_50_percent];
    parts.map(|part| Cell::share(shares.map(part)))
}

/// Section: what channel scales bring.
pub(super) fn scales(analysis: &Analysis) -> Section {
    Section {
        id: "scales".into(),
        title: "Channel scales".into(),
        words: vec![
            "What multiplying the channels of an input (and dividing the weights) brings: AWQ searches an exponent α for scales of the form E|x|^α; the closed form needs no search. Errors are relative errors of the outputs, everything rounded.".into(),
            "α = 0 means no scale. In the plot, points below 1 beat the unscaled input.".into(),
        ],
        follows: "Where the closed form is about as good as the best α, nothing is lost by not searching. Where both are above 1, the input is better left unscaled.".into(),
        blocks: vec![
            Block::Figures(vec![best_alpha(analysis), gain(analysis)]),
            Block::Table(scale_table(analysis)),
        ],
        ..Section::default()
    }
}

fn best_alpha(analysis: &Analysis) -> Figure {
    let best = |group: &GroupRow| group.alpha.as_ref().map(|alpha| alpha.best_alpha);
    let placed = analysis.groups.iter().map(|g| Placed { kind: &g.kind, layer: g.layer, value: best(g) });
    let grid = by_layer(placed);
    let title = "Best exponent by layer";
    let Some(points) = grid.points() else {
        let caption = "Each cell is one input whose α was searched.";
        return grid.heat("best_alpha", title, caption, "best α", BY_VALUE);
    };
    let plot = chart(Axis::whole("Layer"), Axis::linear("best α").including(0.0), points);
    let caption =
        "Each point is one input whose α was searched. Scattered points mean that the error hardly depends on α.";
    figure("best_alpha", title, caption, plot)
}

fn gain(analysis: &Analysis) -> Figure {
    type Of = fn(&crate::analysis::record::AlphaRow) -> f32;
    let parts: [(&str, Of); 2] = [
        ("best α", |row| row.best_error / row.error_unscaled),
        ("closed form", |row| row.error_closed_form / row.error_unscaled),
    ];
    let mut all: Vec<_> = parts
        .into_iter()
        .map(|(name, part)| {
            let point = |group: &GroupRow| Some((f64::from(group.layer?), f64::from(part(group.alpha.as_ref()?))));
            series(name, Shape::Points(analysis.groups.iter().filter_map(point).collect()))
        })
        .collect();
    all.push(series("unscaled", Shape::Level(1.0)));
    let plot = chart(Axis::whole("Layer"), Axis::linear("error / unscaled error"), all);
    figure(
        "scale_gain",
        "Error with scales over error without",
        "Below the line scales help; the distance of the two colours is what the search over α would bring.",
        plot,
    )
}

const SCALE_COLUMNS: [Column; 12] = [
    Column::text("group", "Input", ""),
    Column::choice("layer", "Layer", ""),
    Column::choice("kind", "Kind", ""),
    Column::number("scale_min", "Least scale", "smallest channel scale"),
    Column::number("scale_max", "Largest", "largest channel scale"),
    Column::choice("order", "Order", "order of the channels"),
    Column::choice("applied", "Applied", "at run time, or folded into other weights"),
    Column::number("best_alpha", "Best α", ""),
    Column::number("best_error", "Error, best α", "relative output error"),
    Column::number("error_closed_form", "Error, closed form", "relative output error"),
    Column::number("error_unscaled", "Error, unscaled", "relative output error"),
    Column::text("why_not", "Why not", "why an input has no scale or not the order that was wanted"),
];

fn scale_table(analysis: &Analysis) -> Table {
    let row = |group: &GroupRow| {
        let alpha = group.alpha.as_ref();
        let why: Vec<&str> = group.unscaled.iter().chain(&group.unordered).map(String::as_str).collect();
        vec![
            Cell::text(&group.key),
            layer_cell(group.layer),
            Cell::text(&group.kind),
            Cell::real(group.scale_range.map(|range| range[0])),
            Cell::real(group.scale_range.map(|range| range[1])),
            Cell::text(&group.order),
            group.applied.as_ref().map_or(Cell::None, Cell::text),
            Cell::real(alpha.map(|a| a.best_alpha)),
            Cell::real(alpha.map(|a| a.best_error)),
            Cell::real(alpha.map(|a| a.error_closed_form)),
            Cell::real(alpha.map(|a| a.error_unscaled)),
            if why.is_empty() { Cell::None } else { Cell::text(why.join("; ")) },
        ]
    };
    let rows = analysis.groups.iter().map(row).collect();
    Table::new("channel_scales", "Scales and orders of every input.", &SCALE_COLUMNS, rows)
}
