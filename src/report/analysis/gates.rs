//! Section on tensors before an activation function.

use super::common::{BY_VALUE, Placed, by_layer, chart, figure, panel_id, series};
use crate::analysis::Analysis;
use crate::analysis::record::{GateDetail, GateRow};
use crate::report::page::{Block, Section};
use crate::report::plot::{Axis, Figure, Shape};
use crate::report::table::{Cell, Column, Table};

/// Section: values before and after the activation function.
pub(super) fn section(analysis: &Analysis) -> Section {
    let tau = analysis.setup.tau;
    Section {
        id: "gates".into(),
        title: "Before and after the activation function".into(),
        words: vec![
            format!("The outputs Z of the gates and what the activation function makes of them. A channel is dead if its mean is below τ = {tau}: the function sends it to nearly 0 whatever its value. It is risky if μ + 3σ still reaches τ, and critical if it is risky and its weights are among the largest quarter."),
            "Suppression is what is left of the negative channels: mean|f(Z)| over mean|Z|. AWQ ranks output channels by E|Z|; PRAQ also asks how likely rounding wakes a channel.".into(),
        ],
        follows: "Rounding errors in dead channels cost nothing. In critical channels they can wake what should be silent, so these are worth the encoder's care.".into(),
        blocks: vec![
            Block::Figures(vec![counts(analysis), critical_map(analysis), suppression(analysis)]),
            Block::Table(table(analysis)),
            Block::Table(channel_table(&analysis.gate_details)),
        ],
        ..Section::default()
    }
}

fn ratio(part: u32, gate: &GateRow) -> f32 {
    part as f32 / gate.channels.max(1) as f32
}

fn counts(analysis: &Analysis) -> Figure {
    type Of = fn(&GateRow) -> u32;
    let parts: [(&str, Of); 3] = [
        ("dead", |gate| gate.dead_channels),
        ("risky", |gate| gate.risky_channels),
        ("critical", |gate| gate.critical_channels),
    ];
    let points = |of: Of| analysis.gates.iter().map(|g| (f64::from(g.layer), f64::from(ratio(of(g), g)))).collect();
    let parts = parts.map(|(name, of)| {
        series(name, if analysis.gates.len() > 2 { Shape::Line(points(of)) } else { Shape::Points(points(of)) })
    });
    let plot = chart(Axis::whole("Layer"), Axis::linear("share of the channels").including(0.0), parts.into());
    figure(
        "gate_channels",
        "Dead, risky and critical channels",
        "Shares of each gate's output channels. Critical channels are among the risky ones and those among the dead: where one line hides another, both count the same channels.",
        plot,
    )
}

fn critical_map(analysis: &Analysis) -> Figure {
    let kinds: Vec<String> = analysis.gates.iter().map(|gate| kind(&gate.tensor)).collect();
    let placed = analysis.gates.iter().zip(&kinds);
    let placed = placed.map(|(g, kind)| Placed { kind, layer: Some(g.layer), value: Some(g.negative_share) });
    let caption = "The share of pre-activations below 0: what the activation function suppresses.";
    by_layer(placed).heat("gate_negative_share", "Share of negative pre-activations", caption, "Share", BY_VALUE)
}

/// The name of a tensor without its layer.
fn kind(tensor: &str) -> String {
    let rest = tensor.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(tensor, |(_, rest)| rest);
    rest.trim_end_matches(".weight").to_owned()
}

fn suppression(analysis: &Analysis) -> Figure {
    let points = analysis.gates.iter().filter_map(|g| Some((f64::from(g.layer), f64::from(g.suppression?))));
    let plot = chart(
        Axis::whole("Layer"),
        Axis::linear("mean|f(Z)| / mean|Z|").including(0.0),
        vec![series("", Shape::Points(points.collect()))],
    );
    figure(
        "gate_suppression",
        "What is left of negative channels",
        "Each point is one gate; near 0 the function silences them.",
        plot,
    )
}

const COLUMNS: [Column; 21] = [
    Column::text("tensor", "Tensor", ""),
    Column::choice("layer", "Layer", ""),
    Column::choice("function", "Function", "activation function"),
    Column::number("channels", "Channels", "output channels measured"),
    Column::file("sample_rows"),
    Column::number("pre_mean", "Z mean", ""),
    Column::number("pre_std", "Z std", "standard deviation"),
    Column::number("pre_min", "Z min", ""),
    Column::number("pre_max", "Z max", ""),
    Column::file("post_mean"),
    Column::file("post_std"),
    Column::number("negative_share", "Z < 0", "share of the values"),
    Column::number("below_tau_share", "Z < τ", "share of the values"),
    Column::number("negative_channels", "Negative", "channels with a mean below 0"),
    Column::number("volatile_channels", "Volatile", "of these, channels with a standard deviation above 2"),
    Column::number("dead_channels", "Dead", "channels with a mean below τ"),
    Column::number("risky_channels", "Risky", "dead, but μ + 3σ is above τ"),
    Column::number("critical_channels", "Critical", "risky, and with weights in the largest quarter"),
    Column::number("critical_percentage", "Critical, %", "of the channels"),
    Column::number("suppression", "Suppression", "mean|f(Z)| / mean|Z| of negative channels"),
    Column::number("spearman_awq_praq", "ρ(AWQ, PRAQ)", "Spearman's rank correlation of the two importances"),
];

fn table(analysis: &Analysis) -> Table {
    let rows = analysis.gates.iter().map(|gate| row(analysis, gate)).collect();
    Table::new("gates", "Every gate.", &COLUMNS, rows)
}

fn row(analysis: &Analysis, gate: &GateRow) -> Vec<Cell> {
    let detail = analysis.gate_details.iter().any(|detail| detail.tensor == gate.tensor);
    let name = gate.tensor.clone();
    let count = |count: u32| Cell::Count(count.into());
    vec![
        if detail { Cell::Link(name, panel_id(&gate.tensor)) } else { Cell::Text(name) },
        count(gate.layer),
        Cell::text(&gate.function),
        count(gate.channels),
        count(gate.sample_rows),
        Cell::Real(gate.pre.mean),
        Cell::Real(gate.pre.std),
        Cell::Real(gate.pre.min),
        Cell::Real(gate.pre.max),
        Cell::real(gate.post.map(|post| post.mean)),
        Cell::real(gate.post.map(|post| post.std)),
        Cell::Share(gate.negative_share),
        Cell::Share(gate.below_tau_share),
        count(gate.negative_channels),
        count(gate.volatile_channels),
        count(gate.dead_channels),
        count(gate.risky_channels),
        count(gate.critical_channels),
        Cell::Real(100.0 * ratio(gate.critical_channels, gate)),
        Cell::real(gate.suppression),
        Cell::real(gate.spearman_awq_praq),
    ]
}

const CHANNEL_COLUMNS: [Column; 25] = [
    Column::text("tensor", "Tensor", ""),
    Column::file("expert"),
    Column::number("channel", "Channel", ""),
    Column::number("mean", "Mean", ""),
    Column::number("std", "Std", "standard deviation"),
    Column::number("min", "Min", ""),
    Column::number("max", "Max", ""),
    Column::file("p05"),
    Column::file("p25"),
    Column::file("p50"),
    Column::file("p75"),
    Column::file("p95"),
    Column::number("negative_ratio", "Z < 0", ""),
    Column::number("dead_ratio", "Z < τ", ""),
    Column::number("weight_magnitude", "mean|w|", ""),
    Column::number("awq_importance", "AWQ", "E|Z|"),
    Column::number("praq_importance", "PRAQ", ""),
    Column::file("abs_mean"),
    Column::file("range"),
    Column::file("awq_importance_normalized"),
    Column::file("praq_importance_normalized"),
    Column::number("awq_rank", "AWQ rank", ""),
    Column::number("praq_rank", "PRAQ rank", ""),
    Column::choice("class", "Class", "dead, risky or critical"),
    Column::file("layer_channels"),
];

/// The channels of all gates in detail, in a file only.
fn channel_table(details: &[GateDetail]) -> Table {
    let rows =
        details.iter().flat_map(|detail| (0..detail.channels.channel.len()).map(|place| channel_row(detail, place)));
    Table::new("channel_statistics", "Output channels of the gates in detail.", &CHANNEL_COLUMNS, rows.collect())
        .showing(0)
}

/// The channels of one gate that PRAQ finds most important.
pub(super) fn top_channels(detail: &GateDetail, most: usize) -> Table {
    let mut places: Vec<usize> = (0..detail.channels.channel.len()).collect();
    let praq = |place: &usize| detail.channels.praq_importance.get(*place).copied().unwrap_or(f32::MIN);
    places.sort_by(|a, b| praq(b).total_cmp(&praq(a)));
    let rows = places.into_iter().take(most).map(|place| channel_row(detail, place)).collect();
    let caption = "Output channels with the largest PRAQ importance.";
    Table::new(&format!("top_channels.{}", detail.tensor), caption, &CHANNEL_COLUMNS, rows).page_only()
}

fn channel_row(detail: &GateDetail, place: usize) -> Vec<Cell> {
    let c = &detail.channels;
    let real = |column: &Vec<f32>| Cell::real(column.get(place).copied());
    let range = c.max.get(place).zip(c.min.get(place)).map(|(max, min)| max - min);
    let flags = c.flags.get(place).copied().unwrap_or(0);
    let class = match flags {
        _ if flags & 4 != 0 => "critical",
        _ if flags & 2 != 0 => "risky",
        _ if flags & 1 != 0 => "dead",
        _ => "alive",
    };
    let mut row = vec![
        Cell::text(&detail.tensor),
        Cell::count(c.matrix.get(place).copied()),
        Cell::count(c.channel.get(place).copied()),
    ];
    let before = [&c.mean, &c.std, &c.min, &c.max, &c.p05, &c.p25, &c.p50, &c.p75, &c.p95];
    row.extend(before.map(real));
    row.extend(
        [&c.negative_ratio, &c.dead_ratio, &c.weight_magnitude, &c.awq_importance, &c.praq_importance].map(real),
    );
    row.extend([real(&c.awq_importance), Cell::real(range)]);
    row.extend([&c.awq_normalized, &c.praq_normalized, &c.awq_rank, &c.praq_rank].map(real));
    row.extend([Cell::text(class), Cell::Count(c.total.into())]);
    row
}
