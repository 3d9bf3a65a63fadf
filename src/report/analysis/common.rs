//! What the sections share: values by layer, medians, names of things.

use std::collections::BTreeSet;

use crate::report::page::anchor;
use crate::report::plot::{Axis, Chart, Figure, HeatMap, Plot, Scale, Series, Shades, Shape, colour};
use crate::report::table::Cell;

/// Gives the median of the finite values, the mean of the two middle ones where their number is even.
pub(super) fn median(values: impl IntoIterator<Item = f32>) -> Option<f32> {
    let mut values: Vec<f32> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_unstable_by(f32::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f32::midpoint(values[middle - 1], values[middle])),
    }
}

/// Gives the distinct items in the order in which they first appear.
pub(super) fn distinct<'a>(items: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut seen = Vec::<String>::new();
    for item in items {
        if !seen.iter().any(|known| known == item) {
            seen.push(item.to_owned());
        }
    }
    seen
}

/// One value of a kind of thing in a layer.
pub(super) struct Placed<'a> {
    pub(super) kind: &'a str,
    pub(super) layer: Option<u32>,
    pub(super) value: Option<f32>,
}

/// Values with a row for each kind and a column for each layer.
pub(super) struct ByLayer {
    pub(super) layers: Vec<u32>,
    pub(super) kinds: Vec<String>,
    pub(super) values: Vec<Vec<f64>>,
}

/// Arranges values by kind and layer; what is in no layer or has no value at all is left out.
pub(super) fn by_layer<'a>(placed: impl IntoIterator<Item = Placed<'a>>) -> ByLayer {
    let placed: Vec<(&str, u32, f32)> = placed.into_iter().filter_map(|p| Some((p.kind, p.layer?, p.value?))).collect();
    let layers: Vec<u32> = placed.iter().map(|p| p.1).collect::<BTreeSet<_>>().into_iter().collect();
    let kinds = distinct(placed.iter().map(|p| p.0));
    let mut values = vec![vec![f64::NAN; layers.len()]; kinds.len()];
    for (kind, layer, value) in placed {
        let row = kinds.iter().position(|known| known == kind);
        if let (Some(row), Ok(column)) = (row, layers.binary_search(&layer)) {
            values[row][column] = f64::from(value);
        }
    }
    ByLayer { layers, kinds, values }
}

impl ByLayer {
    /// Makes a heat map of layers and kinds.
    pub(super) fn heat(self, name: &str, title: &str, caption: &str, label: &str, shades: Shades) -> Figure {
        let map = HeatMap {
            x_label: "Layer".to_owned(),
            columns: self.layers.iter().map(u32::to_string).collect(),
            rows: self.kinds,
            values: self.values,
            value_label: label.to_owned(),
            shades,
        };
        figure(name, title, caption, Plot::Heat(map))
    }

    /// The values of each kind as points over the layers, or nothing where there are more kinds than colours.
    pub(super) fn points(&self) -> Option<Vec<Series>> {
        let of = |values: &Vec<f64>| {
            let points = self.layers.iter().map(|layer| f64::from(*layer)).zip(values.iter().copied());
            points.filter(|(_, value)| value.is_finite()).collect()
        };
        let points = self.kinds.iter().zip(&self.values).map(|(kind, values)| series(kind, Shape::Points(of(values))));
        (self.kinds.len() <= colour::SERIES.len()).then(|| points.collect())
    }

    /// The same factor below and above 1, such that all values are between.
    pub(super) fn around_1(&self) -> Shades {
        let away = self.values.iter().flatten().map(|value| value.ln().abs()).filter(|away| away.is_finite());
        let factor = away.fold(0.01, f64::max).exp();
        Shades::Range(Scale::Log, Some((1.0 / factor, factor)))
    }
}

/// Colours over the values' own range, by ratio.
pub(super) const BY_RATIO: Shades = Shades::Range(Scale::Log, None);
/// Colours over the values' own range.
pub(super) const BY_VALUE: Shades = Shades::Range(Scale::Linear, None);

pub(super) fn figure(name: &str, title: &str, caption: &str, plot: Plot) -> Figure {
    Figure { name: anchor(name), title: title.to_owned(), caption: caption.to_owned(), plot }
}

/// A chart in a column of the page.
pub(super) fn chart(x: Axis, y: Axis, series: Vec<Series>) -> Plot {
    Plot::Chart(Chart { x, y, series, wide: false })
}

pub(super) fn series(name: &str, shape: Shape) -> Series {
    Series { name: name.to_owned(), shape }
}

/// A bar for each category, not finite where there is none.
pub(super) fn bars(values: impl IntoIterator<Item = Option<f32>>) -> Shape {
    Shape::Bars(values.into_iter().map(|value| value.map_or(f64::NAN, f64::from)).collect())
}

/// Values at the places of categories, not finite where there is none: for a logarithmic axis, on which bars have no foot.
pub(super) fn dots(values: impl IntoIterator<Item = Option<f32>>) -> Shape {
    let point = |(place, value): (usize, Option<f32>)| (place as f64, value.map_or(f64::NAN, f64::from));
    Shape::Points(values.into_iter().enumerate().map(point).collect())
}

/// Points of two columns.
pub(super) fn pairs(x: &[f32], y: &[f32]) -> Vec<(f64, f64)> {
    x.iter().zip(y).map(|(x, y)| (f64::from(*x), f64::from(*y))).collect()
}

/// The cell of a layer, which tables can be filtered by.
pub(super) fn layer_cell(layer: Option<u32>) -> Cell {
    Cell::count(layer)
}

/// The anchor of the panel of an input group.
pub(super) fn panel_id(key: &str) -> String {
    format!("detail-{}", anchor(key))
}

/// Makes a sentence of words: a capital letter and a full stop.
pub(super) fn sentence(words: &str) -> String {
    let words = words.trim();
    let mut letters = words.chars();
    let capital: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
    if capital.ends_with(['.', '!', '?']) { capital } else { capital + "." }
}

/// Writes `1 tensor`, `2 tensors`.
pub(super) fn counted(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// Writes the first names and how many more there are.
pub(super) fn listed(names: &[&str], most: usize) -> String {
    let first = names.iter().take(most).copied().collect::<Vec<_>>().join(", ");
    if names.len() > most { format!("{first} and {} more", names.len() - most) } else { first }
}

/// Says in words what a path of activations is.
pub(super) fn path_words(path: &str) -> &str {
    match path {
        "none" => "exact activations",
        "int8" => "INT8 activations",
        "int4" => "INT4 activations (one scale for 256)",
        "int4-group32" => "INT4 activations (one scale for 32)",
        "int4-fork" => "the fork's INT4 activations",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_those_of_paper() {
        assert_eq!(median([3.0, 1.0, f32::NAN, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn values_stand_at_their_layer() {
        let placed = |kind, layer, value| Placed { kind, layer, value };
        let grid = by_layer([
            placed("up", Some(7), Some(2.0)),
            placed("down", Some(3), Some(1.0)),
            placed("up", None, Some(9.0)),
            placed("up", Some(4), None),
        ]);
        assert_eq!((grid.layers, grid.kinds), (vec![3, 7], vec!["up".to_owned(), "down".to_owned()]));
        assert!(grid.values[0][0].is_nan() && grid.values[0][1] == 2.0 && grid.values[1][0] == 1.0);
    }

    #[test]
    fn kinds_are_points_while_there_are_colours() {
        let names: Vec<String> = (0..8).map(|kind| format!("kind {kind}")).collect();
        let grid = |kinds: usize| {
            by_layer(names.iter().take(kinds).map(|kind| Placed { kind, layer: Some(3), value: Some(2.0) }))
        };
        let points = grid(7).points().unwrap();
        assert_eq!((points.len(), &points[6].shape), (7, &Shape::Points(vec![(3.0, 2.0)])));
        assert_eq!(grid(8).points(), None);
    }

    #[test]
    fn the_scale_of_ratios_has_1_in_the_middle() {
        let placed = |layer, value| Placed { kind: "up", layer: Some(layer), value: Some(value) };
        let Shades::Range(Scale::Log, Some((low, high))) = by_layer([placed(0, 0.25), placed(1, 2.0)]).around_1()
        else {
            panic!("no logarithmic range")
        };
        assert!((low - 0.25).abs() < 1e-9 && (high - 4.0).abs() < 1e-9, "{low} to {high}");
    }

    #[test]
    fn words_become_sentences() {
        assert_eq!(sentence("no rows"), "No rows.");
        assert_eq!(sentence(" Done! "), "Done!");
        assert_eq!(listed(&["a", "b", "c"], 2), "a, b and 1 more");
        assert_eq!((counted(1, "tensor"), counted(3, "tensor")), ("1 tensor".into(), "3 tensors".into()));
    }
}
