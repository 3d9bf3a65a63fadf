//! Sections on the error of outputs and on the types of tensors.

use super::common::{
    BY_RATIO, Placed, bars, by_layer, chart, distinct, figure, layer_cell, median, panel_id, path_words, series,
};
use crate::analysis::Analysis;
use crate::analysis::record::{OutputErrors, TensorRow};
use crate::report::page::{Block, Section};
use crate::report::plot::{Axis, Chart, Figure, Plot, Shades, Shape};
use crate::report::table::{Cell, Column, Table};

/// Section: how far outputs are off.
pub(super) fn errors(analysis: &Analysis) -> Section {
    let path = path_words(&analysis.setup.activations);
    Section {
        id: "output".into(),
        title: "Error of the outputs".into(),
        words: vec![
            format!("How far the output of each matrix is off, on sample rows of real text, with {path}. The error is relative: Σ(y − y_q)² / Σy². 0.01 means noise of a tenth of the signal's size (√0.01)."),
            "Read the map from left (first layer) to right; bright cells are the worst. Compare cells of one row first: kinds of tensors differ by nature.".into(),
        ],
        follows: "A bright row is a kind of tensor that wants more bits or another preparation; a single bright cell is a layer to look at below. The bars tell whether the weights or the activations are to blame.".into(),
        blocks: vec![
            Block::Figures([Some(error_map(analysis)), worst_and_median(analysis), by_path(analysis)].into_iter().flatten().collect()),
            Block::Table(tensor_table(analysis)),
        ],
        ..Section::default()
    }
}

fn assumed(tensor: &TensorRow) -> Option<f32> {
    tensor.output.map(|output| output.assumed)
}

fn error_map(analysis: &Analysis) -> Figure {
    let placed = analysis.tensors.iter().map(|t| Placed { kind: &t.kind, layer: t.layer, value: assumed(t) });
    by_layer(placed).heat(
        "output_error_by_layer",
        "Relative output error by layer",
        "Each cell is one tensor; the scale is logarithmic. Grey: not measured.",
        "Error",
        BY_RATIO,
    )
}

fn worst_and_median(analysis: &Analysis) -> Option<Figure> {
    let placed = analysis.tensors.iter().map(|t| Placed { kind: &t.kind, layer: t.layer, value: assumed(t) });
    let grid = by_layer(placed);
    if grid.layers.len() < 3 {
        return None;
    }
    let column = |place: usize| grid.values.iter().map(move |row| row[place] as f32);
    let points = |value: &dyn Fn(usize) -> Option<f32>| {
        let points = grid.layers.iter().enumerate();
        Shape::Line(points.filter_map(|(place, layer)| Some((f64::from(*layer), f64::from(value(place)?)))).collect())
    };
    let worst = |place| column(place).filter(|v| v.is_finite()).reduce(f32::max);
    let middle = |place| median(column(place));
    let plot = Plot::Chart(Chart {
        x: Axis::whole("Layer"),
        y: Axis::log("Relative output error"),
        series: vec![series("worst tensor", points(&worst)), series("median tensor", points(&middle))],
        wide: true,
    });
    Some(figure(
        "output_error_course",
        "Worst and median tensor of each layer",
        "Where the two lines part, a single tensor carries the layer's error.",
        plot,
    ))
}

type Path = (&'static str, fn(&OutputErrors) -> f32);

/// The paths of activations that are always measured.
const PATHS: [Path; 4] = [
    ("weights only", |output| output.weights_only),
    ("INT8", |output| output.int8),
    ("INT4, 32 a scale", |output| output.int4_group32),
    ("INT4, 256 a scale", |output| output.int4),
];

fn by_path(analysis: &Analysis) -> Option<Figure> {
    let measured: Vec<&TensorRow> = analysis.tensors.iter().filter(|t| t.output.is_some()).collect();
    let kinds = distinct(measured.iter().map(|tensor| tensor.kind.as_str()));
    if kinds.is_empty() {
        return None;
    }
    let of_kind = |kind: &str, path: fn(&OutputErrors) -> f32| {
        let same = measured.iter().filter(|tensor| tensor.kind == kind);
        median(same.filter_map(|tensor| tensor.output.as_ref().map(path)))
    };
    let bars = PATHS.map(|(name, path)| series(name, bars(kinds.iter().map(|kind| of_kind(kind, path)))));
    let plot = Plot::Chart(Chart {
        x: Axis::named("", kinds.clone()),
        y: Axis::linear("Relative output error").including(0.0),
        series: bars.into(),
        wide: kinds.len() > 4,
    });
    let caption = "Median over the layers. The first bar of a kind is the weights' own error; what the others add comes from rounding the activations.";
    Some(figure("output_error_by_path", "Output error by kind of tensor and of activation", caption, plot))
}

const TENSOR_COLUMNS: [Column; 18] = [
    Column::text("tensor", "Tensor", "the name in the file"),
    Column::choice("layer", "Layer", ""),
    Column::choice("kind", "Kind", "the name without the layer"),
    Column::file("rows"),
    Column::file("columns"),
    Column::file("matrices"),
    Column::number("weights", "Weights", "number of weights"),
    Column::file("from"),
    Column::choice("to", "Type", "ggml's type in the converted file"),
    Column::number("bits", "Bits", "bits a weight in the converted file"),
    Column::number("error_rel", "Weights' error", "relative error of the weights after scaling and ordering"),
    Column::number("output_weights_only", "Output, W", "relative output error with exact activations"),
    Column::number("output_int8", "W, A8", "with INT8 activations"),
    Column::number("output_int4_group32", "W, A4/32", "with INT4 activations, one scale for 32"),
    Column::number("output_int4", "W, A4/256", "with INT4 activations, one scale for 256"),
    Column::number("output_assumed", "Assumed", "with the activations that the analysis assumes"),
    Column::file("measured_on"),
    Column::file("sample_rows"),
];

fn tensor_table(analysis: &Analysis) -> Table {
    let mut rows: Vec<&TensorRow> =
        analysis.tensors.iter().filter(|t| t.output.is_some() || t.error_rel.is_some()).collect();
    rows.sort_by(|a, b| assumed(b).unwrap_or(-1.0).total_cmp(&assumed(a).unwrap_or(-1.0)));
    let rows = rows.into_iter().map(|tensor| tensor_row(analysis, tensor)).collect();
    Table::new("tensors", "Measured tensors, worst output first.", &TENSOR_COLUMNS, rows)
}

fn tensor_row(analysis: &Analysis, tensor: &TensorRow) -> Vec<Cell> {
    let output = |part: fn(&OutputErrors) -> f32| Cell::real(tensor.output.as_ref().map(part));
    let on = tensor.measured_on.as_ref();
    vec![
        name_cell(analysis, &tensor.name, tensor.group.as_deref()),
        layer_cell(tensor.layer),
        Cell::text(&tensor.kind),
        Cell::Count(tensor.rows),
        Cell::Count(tensor.columns),
        Cell::Count(tensor.matrices),
        Cell::Count(tensor.weights),
        Cell::text(&tensor.from),
        Cell::text(&tensor.to),
        Cell::Real(tensor.bits),
        Cell::real(tensor.error_rel),
        output(|o| o.weights_only),
        output(|o| o.int8),
        output(|o| o.int4_group32),
        output(|o| o.int4),
        output(|o| o.assumed),
        on.map_or(Cell::None, |on| Cell::text(&on.weights)),
        Cell::count(on.map(|on| on.sample_rows)),
    ]
}

/// The name of a tensor, leading to its panel where there is one.
pub(super) fn name_cell(analysis: &Analysis, name: &str, group: Option<&str>) -> Cell {
    let panel = group.filter(|key| analysis.group_details.iter().any(|detail| detail.key == **key));
    panel.map_or_else(|| Cell::text(name), |key| Cell::Link(name.to_owned(), panel_id(key)))
}

/// Section: which types tensors have.
pub(super) fn types(analysis: &Analysis) -> Section {
    Section {
        id: "types".into(),
        title: "Types and fallbacks".into(),
        words: vec![
            "Which type every matrix has in the converted file, how many bits a weight that costs, and where a type had to stand in for TCQ4 because the shape does not fit.".into(),
            "Vermillion cells are substitutions. Norms and other vectors keep their type and are not shown.".into(),
        ],
        follows: "Substitutions cost bits, not quality; with --strict the conversion refuses them.".into(),
        blocks: vec![
            Block::Figures([Some(type_map(analysis)), bits_by_type(analysis)].into_iter().flatten().collect()),
            Block::Table(type_table(analysis)),
        ],
        ..Section::default()
    }
}

fn type_map(analysis: &Analysis) -> Figure {
    let plain = distinct(analysis.tensors.iter().filter(|t| !t.substituted).map(|t| t.to.as_str()));
    let stand_ins = distinct(analysis.tensors.iter().filter(|t| t.substituted).map(|t| t.to.as_str()));
    let kind_of = |tensor: &TensorRow| {
        let known = if tensor.substituted { &stand_ins } else { &plain };
        let place = known.iter().position(|name| *name == tensor.to)?;
        Some((if tensor.substituted { plain.len() + place } else { place }) as f32)
    };
    let placed = analysis.tensors.iter().map(|t| Placed { kind: &t.kind, layer: t.layer, value: kind_of(t) });
    let names = plain.iter().cloned().chain(stand_ins.iter().map(|name| format!("{name} *"))).collect();
    let caption =
        "Each cell is one tensor; a star and vermillion mark substitutions. Grey: the layer has no such tensor.";
    by_layer(placed).heat("types_by_layer", "Type by layer", caption, "Type", Shades::Kinds(names, plain.len()))
}

fn bits_by_type(analysis: &Analysis) -> Option<Figure> {
    let types = distinct(analysis.tensors.iter().map(|tensor| tensor.to.as_str()));
    let bytes = |name: &String| {
        let same = analysis.tensors.iter().filter(|tensor| tensor.to == *name);
        Some(same.map(|tensor| tensor.weights as f64 * f64::from(tensor.bits) / 8.0 / 1024.0 / 1024.0).sum::<f64>()
            as f32)
    };
    let bars = vec![series("", bars(types.iter().map(bytes)))];
    let plot = chart(Axis::named("", types), Axis::linear("MiB").including(0.0), bars);
    (!analysis.tensors.is_empty()).then(|| {
        figure("bytes_by_type", "Bytes by type", "Where the file's bytes are: all matrices of one type together.", plot)
    })
}

const TYPE_COLUMNS: [Column; 9] = [
    Column::text("tensor", "Tensor", ""),
    Column::choice("layer", "Layer", ""),
    Column::choice("kind", "Kind", ""),
    Column::choice("from", "From", "type in the source"),
    Column::choice("to", "To", "type in the converted file"),
    Column::number("bits", "Bits", "bits a weight"),
    Column::number("weights", "Weights", ""),
    Column::choice("substituted", "Stands in", "whether the type stands in for one that does not fit"),
    Column::text("reason", "Why", ""),
];

fn type_table(analysis: &Analysis) -> Table {
    let mut tensors: Vec<&TensorRow> = analysis.tensors.iter().collect();
    tensors.sort_by_key(|tensor| !tensor.substituted);
    let row = |tensor: &TensorRow| {
        vec![
            Cell::text(&tensor.name),
            layer_cell(tensor.layer),
            Cell::text(&tensor.kind),
            Cell::text(&tensor.from),
            Cell::text(&tensor.to),
            Cell::Real(tensor.bits),
            Cell::Count(tensor.weights),
            Cell::text(if tensor.substituted { "yes" } else { "no" }),
            Cell::text(&tensor.reason),
        ]
    };
    let rows = tensors.into_iter().map(row).collect();
    Table::new("types", "Every matrix, substitutions first.", &TYPE_COLUMNS, rows)
}
