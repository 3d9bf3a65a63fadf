//! Section on how the calibration text was routed to experts.

use super::common::{chart, figure, listed, series};
use crate::analysis::Analysis;
use crate::analysis::record::ExpertRow;
use crate::report::page::{Block, Section};
use crate::report::plot::{Axis, Figure, HeatMap, Plot, Scale, Shades, Shape};
use crate::report::table::{Cell, Column, Table};

/// Section: which experts saw how much.
pub(super) fn section(analysis: &Analysis) -> Section {
    Section {
        id: "experts".into(),
        title: "Coverage of experts".into(),
        words: vec![
            format!("How many token rows of the calibration text each expert saw. {}", threshold(analysis)),
            "A share of 1 is an even split: as many tokens as every other expert. Balance is the entropy of the shares over that of an even split.".into(),
        ],
        follows: "An expert that saw few tokens has statistics of little worth; its tensors lean on the layer's common ones. More or broader calibration text helps.".into(),
        blocks: vec![
            Block::Figures([share_map(analysis), least(analysis)].into_iter().flatten().collect()),
            Block::Table(layer_table(analysis)),
            Block::Table(expert_table(analysis)),
        ],
        ..Section::default()
    }
}

fn threshold(analysis: &Analysis) -> String {
    let tokens = analysis.setup.min_expert_tokens.map(|tokens| format!("fewer than {tokens} tokens"));
    let share = analysis.setup.min_expert_share.map(|share| format!("less than {share} of an even split"));
    match (tokens, share) {
        (None, None) => "No least number was asked for, so only experts that saw nothing count as starved.".to_owned(),
        (tokens, share) => {
            let rules: Vec<String> = tokens.into_iter().chain(share).collect();
            format!("Experts with {} count as starved.", rules.join(" or "))
        }
    }
}

fn even_share(row: &ExpertRow, tokens: u64) -> f64 {
    tokens as f64 * row.tokens.len() as f64 / row.total.max(1) as f64
}

fn share_map(analysis: &Analysis) -> Option<Figure> {
    let experts = analysis.experts.iter().map(|row| row.tokens.len()).max()?;
    let value = |row: &ExpertRow, expert: usize| row.tokens.get(expert).map_or(f64::NAN, |t| even_share(row, *t));
    let map = HeatMap {
        x_label: "Layer".to_owned(),
        columns: analysis.experts.iter().map(|row| row.layer.to_string()).collect(),
        rows: (0..experts).map(|expert| format!("expert {expert}")).collect(),
        values: (0..experts).map(|e| analysis.experts.iter().map(|row| value(row, e)).collect()).collect(),
        value_label: "Of even split".to_owned(),
        shades: Shades::Range(Scale::Linear, None),
    };
    let caption = "Each cell is one expert of one layer: its tokens over an even split. Dark cells saw little.";
    Some(figure("expert_coverage", "Tokens of every expert", caption, Plot::Heat(map)))
}

fn least(analysis: &Analysis) -> Option<Figure> {
    let line = |value: fn(&ExpertRow) -> Option<f32>| {
        let points = analysis.experts.iter();
        let points: Vec<_> = points.filter_map(|row| Some((f64::from(row.layer), f64::from(value(row)?)))).collect();
        if points.len() > 2 { Shape::Line(points) } else { Shape::Points(points) }
    };
    let parts = vec![
        series("least", line(|row| row.min_share)),
        series("most", line(|row| row.max_share)),
        series("even split", Shape::Level(1.0)),
    ];
    let plot = chart(Axis::whole("Layer"), Axis::linear("share of an even split").including(0.0), parts);
    (!analysis.experts.is_empty()).then(|| {
        figure(
            "expert_extremes",
            "Least and most used expert",
            "The wider apart the lines, the more the router prefers some experts for this text.",
            plot,
        )
    })
}

const LAYER_COLUMNS: [Column; 8] = [
    Column::choice("layer", "Layer", ""),
    Column::text("tensor", "Counted at", "the stack of experts whose rows were counted"),
    Column::number("experts", "Experts", ""),
    Column::number("tokens", "Tokens", "tokens times experts used"),
    Column::number("min_share", "Least", "share of an even split"),
    Column::number("max_share", "Most", "share of an even split"),
    Column::number("balance", "Balance", "entropy over that of an even split"),
    Column::text("starved", "Starved", "experts below the threshold"),
];

fn layer_table(analysis: &Analysis) -> Table {
    let row = |row: &ExpertRow| {
        let starved: Vec<String> = row.starved.iter().map(u32::to_string).collect();
        let starved: Vec<&str> = starved.iter().map(String::as_str).collect();
        vec![
            Cell::Count(row.layer.into()),
            Cell::text(&row.tensor),
            Cell::Count(row.tokens.len() as u64),
            Cell::Count(row.total),
            Cell::real(row.min_share),
            Cell::real(row.max_share),
            Cell::real(row.balance),
            if starved.is_empty() { Cell::text("none") } else { Cell::text(listed(&starved, 12)) },
        ]
    };
    Table::new("expert_layers", "Coverage by layer.", &LAYER_COLUMNS, analysis.experts.iter().map(row).collect())
}

const EXPERT_COLUMNS: [Column; 5] = [
    Column::choice("layer", "Layer", ""),
    Column::number("expert", "Expert", ""),
    Column::number("tokens", "Tokens", "token rows"),
    Column::number("share", "Of even split", "tokens over an even split: 1 is as many as the others"),
    Column::choice("starved", "Starved", ""),
];

/// Rows of the table on the page, those with fewest tokens first.
const EXPERT_ROWS: usize = 200;

fn expert_table(analysis: &Analysis) -> Table {
    let all =
        analysis.experts.iter().flat_map(|row| row.tokens.iter().enumerate().map(move |(e, tokens)| (row, e, *tokens)));
    let mut all: Vec<(&ExpertRow, usize, u64)> = all.collect();
    all.sort_by_key(|(row, expert, tokens)| (*tokens, row.layer, *expert));
    let cells = |(row, expert, tokens): (&ExpertRow, usize, u64)| {
        vec![
            Cell::Count(row.layer.into()),
            Cell::Count(expert as u64),
            Cell::Count(tokens),
            Cell::Real(even_share(row, tokens) as f32),
            Cell::text(if row.starved.contains(&(expert as u32)) { "yes" } else { "no" }),
        ]
    };
    let rows = all.into_iter().map(cells).collect();
    Table::new("experts", "Every expert, least used first.", &EXPERT_COLUMNS, rows).showing(EXPERT_ROWS)
}
