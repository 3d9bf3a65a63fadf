//! Section on the activation after each step of the preparation.

use super::common::{Placed, bars, by_layer, chart, dots, figure, layer_cell, median, series};
use crate::analysis::Analysis;
use crate::analysis::record::{GroupRow, Step, StepRow};
use crate::report::page::{Block, Section};
use crate::report::plot::{Axis, Figure, Shape};
use crate::report::table::{Cell, Column, Table};

/// Section: what scaling, ordering and rotating do to inputs.
pub(super) fn section(analysis: &Analysis) -> Section {
    Section {
        id: "steps".into(),
        title: "Inputs before and after each step".into(),
        words: vec![
            "What the preparation does to an input before it is rounded: as the model computes it (plain), times the channel scale (scaled), dealt out over the blocks (ordered), and turned by the Hadamard transform (rotated). “Rotated, not prepared” is the transform alone: what the preparation must beat.".into(),
            "Victims are values other than 0 that INT4 rounds to 0 because a larger value sets the scale of their block. The crest factor is the largest value of a block over its root mean square: the smaller, the better a block fits into 16 steps.".into(),
        ],
        follows: "If “rotated” is below “rotated, not prepared”, scaling and ordering pay. Cells above 1 in the map are inputs that they made worse for INT4.".into(),
        blocks: vec![
            Block::Figures(vec![gain_map(analysis), by_step(analysis), victims(analysis), crest(analysis)]),
            Block::Table(table(analysis)),
        ],
        ..Section::default()
    }
}

/// The row of a step, if it was measured.
pub(super) fn of_step(group: &GroupRow, step: Step) -> Option<&StepRow> {
    group.steps.iter().find(|row| row.step == step)
}

/// The error of INT4 after the whole preparation over that of the transform alone.
pub(super) fn gain(group: &GroupRow) -> Option<f32> {
    let (prepared, plain) = (of_step(group, Step::Rotated)?, of_step(group, Step::RotatedPlain)?);
    (plain.error_int4 > 0.0).then_some(prepared.error_int4 / plain.error_int4)
}

/// What a step is called on the page.
pub(super) fn words(step: Step) -> &'static str {
    match step {
        Step::Plain => "plain",
        Step::Scaled => "scaled",
        Step::Ordered => "ordered",
        Step::Rotated => "rotated",
        Step::RotatedPlain => "rotated, not prepared",
    }
}

fn gain_map(analysis: &Analysis) -> Figure {
    let placed = analysis.groups.iter().map(|g| Placed { kind: &g.kind, layer: g.layer, value: gain(g) });
    let grid = by_layer(placed);
    let shades = grid.around_1();
    grid.heat(
        "preparation_gain",
        "Error of INT4 inputs: prepared over not prepared",
        "Each cell is one input. Darker than the middle of the scale, below 1, the preparation helps; brighter it harms. The scale is logarithmic.",
        "Ratio",
        shades,
    )
}

fn medians(analysis: &Analysis, value: fn(&StepRow) -> f32) -> Shape {
    bars(of_all(analysis, value))
}

fn logarithmic(analysis: &Analysis, value: fn(&StepRow) -> f32) -> Shape {
    dots(of_all(analysis, value))
}

/// The median over all inputs for each step.
fn of_all(analysis: &Analysis, value: fn(&StepRow) -> f32) -> [Option<f32>; 5] {
    Step::ALL.map(|step| median(analysis.groups.iter().filter_map(|group| of_step(group, step).map(value))))
}

fn names() -> Vec<String> {
    Step::ALL
        .into_iter()
        .map(|step| if step == Step::RotatedPlain { "unprepared" } else { words(step) }.to_owned())
        .collect()
}

fn by_step(analysis: &Analysis) -> Figure {
    let parts = vec![
        series("INT4, 256 a scale", logarithmic(analysis, |row| row.error_int4)),
        series("INT4, 32 a scale", logarithmic(analysis, |row| row.error_int4_group32)),
        series("INT8", logarithmic(analysis, |row| row.error_int8)),
    ];
    let plot = chart(Axis::named("", names()), Axis::log("Relative error of the input"), parts);
    figure(
        "step_errors",
        "Rounding error of inputs after each step",
        "Median over all inputs. “Unprepared” is rotated without scales and order.",
        plot,
    )
}

fn victims(analysis: &Analysis) -> Figure {
    let parts = vec![
        series("256 a scale", medians(analysis, |row| row.victims_256)),
        series("32 a scale", medians(analysis, |row| row.victims_32)),
    ];
    let plot = chart(Axis::named("", names()), Axis::linear("Share of victims").including(0.0), parts);
    figure(
        "step_victims",
        "Values that INT4 rounds to 0",
        "Median over all inputs of the share of values other than 0 that are lost.",
        plot,
    )
}

fn crest(analysis: &Analysis) -> Figure {
    let parts = vec![
        series("blocks of 256", medians(analysis, |row| row.crest_256)),
        series("blocks of 32", medians(analysis, |row| row.crest_32)),
    ];
    let plot = chart(Axis::named("", names()), Axis::linear("Crest factor").including(0.0), parts);
    let caption = "Median over all inputs of max|x| / rms within a block. Noise of a normal distribution has about 3.0 in 256 and 2.4 in 32.";
    figure("step_crest", "Crest factor of blocks", caption, plot)
}

const COLUMNS: [Column; 22] = [
    Column::text("group", "Input", ""),
    Column::choice("layer", "Layer", ""),
    Column::choice("kind", "Kind", ""),
    Column::choice("step", "Step", ""),
    Column::number("error_int4", "INT4/256", "relative error with one scale for 256"),
    Column::number("error_int4_group32", "INT4/32", "relative error with one scale for 32"),
    Column::number("error_int8", "INT8", "relative error with one scale for 32"),
    Column::number("victims_256", "Victims/256", "share of values rounded to 0"),
    Column::number("victims_32", "Victims/32", ""),
    Column::number("crest_256", "Crest/256", "mean of max|x| / rms of the blocks of 256"),
    Column::number("crest_32", "Crest/32", ""),
    Column::file("block_max_256_mean"),
    Column::file("block_max_256_p05"),
    Column::file("block_max_256_p50"),
    Column::file("block_max_256_p95"),
    Column::file("block_max_256_max"),
    Column::file("block_max_32_mean"),
    Column::file("block_max_32_p05"),
    Column::file("block_max_32_p50"),
    Column::file("block_max_32_p95"),
    Column::file("block_max_32_max"),
    Column::file("sample_rows"),
];

fn table(analysis: &Analysis) -> Table {
    let rows = analysis.groups.iter().flat_map(|group| group.steps.iter().map(move |step| row(group, step))).collect();
    Table::new("steps", "Every input after every step.", &COLUMNS, rows)
}

fn row(group: &GroupRow, step: &StepRow) -> Vec<Cell> {
    let (large, small) = (step.block_max_256, step.block_max_32);
    let mut row = vec![
        Cell::text(&group.key),
        layer_cell(group.layer),
        Cell::text(&group.kind),
        Cell::text(words(step.step)),
        Cell::Real(step.error_int4),
        Cell::Real(step.error_int4_group32),
        Cell::Real(step.error_int8),
        Cell::Share(step.victims_256),
        Cell::Share(step.victims_32),
        Cell::Real(step.crest_256),
        Cell::Real(step.crest_32),
    ];
    let spreads = [large, small].into_iter().flat_map(|s| [s.mean, s.p05, s.p50, s.p95, s.max]);
    row.extend(spreads.map(Cell::Real));
    row.push(Cell::Count(group.sample_rows.into()));
    row
}
