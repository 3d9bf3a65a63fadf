//! Charts over two axes: curves, histograms, bars, points and boxes. All of them are drawn over the same kind of axis.

use super::short;
use super::ticks;

/// How an axis maps values to places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// Equal differences are equally long.
    #[default]
    Linear,
    /// Equal ratios are equally long; values that are not positive are left out.
    Log,
}

/// One axis.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    /// How values are mapped.
    pub scale: Scale,
    /// Names of the places 0, 1, 2 …, for an axis of categories.
    pub categories: Vec<String>,
    /// A value that must be visible, 0 for bars.
    pub include: Option<f64>,
    /// Whether there is nothing between whole numbers, so that ticks stand at these only.
    pub whole: bool,
}

/// How a series is drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Points joined by a line.
    Line(Vec<(f64, f64)>),
    /// Separate points.
    Points(Vec<(f64, f64)>),
    /// A histogram: `n + 1` edges and `n` heights.
    Steps(Vec<f64>, Vec<f64>),
    /// One bar for each category; not finite where there is none. Several series of bars stand side by side.
    Bars(Vec<f64>),
    /// For each category minimum, lower quartile, median, upper quartile and maximum.
    Boxes(Vec<[f64; 5]>),
    /// A horizontal line across the chart.
    Level(f64),
    /// A vertical line across the chart.
    Upright(f64),
}

/// One series.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// What is drawn.
    pub shape: Shape,
}

/// A chart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chart {
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The series, drawn in this order.
    pub series: Vec<Series>,
    /// Whether it wants the whole width of a page.
    pub wide: bool,
}

impl Axis {
    /// An axis of plain numbers.
    pub fn linear(label: &str) -> Axis {
        Axis { label: label.to_owned(), ..Axis::default() }
    }

    /// An axis of numbers of layers, channels or the like.
    pub fn whole(label: &str) -> Axis {
        Axis { label: label.to_owned(), whole: true, ..Axis::default() }
    }

    /// A logarithmic axis.
    pub fn log(label: &str) -> Axis {
        Axis { label: label.to_owned(), scale: Scale::Log, ..Axis::default() }
    }

    /// An axis of named places.
    pub fn named(label: &str, categories: Vec<String>) -> Axis {
        Axis { label: label.to_owned(), categories, ..Axis::default() }
    }

    /// Makes a value visible whatever the data.
    #[must_use]
    pub fn including(mut self, value: f64) -> Axis {
        self.include = Some(value);
        self
    }

    /// Where a value stands on the axis, if it can.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let place = if self.scale == Scale::Log { value.log10() } else { value };
        place.is_finite().then_some(place)
    }

    /// The range of the axis that shows all of `values`, never empty.
    fn range(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        if !self.categories.is_empty() {
            return (-0.5, self.categories.len() as f64 - 0.5);
        }
        let places = values.chain(self.include).filter_map(|value| self.place(value));
        let (low, high) = places.fold((f64::MAX, f64::MIN), |(low, high), p| (low.min(p), high.max(p)));
        match (low, high) {
            _ if low > high => (0.0, 1.0),
            _ if high - low > 1e-12 * high.abs().max(low.abs()) => (low, high),
            _ if self.scale == Scale::Log => (low - 0.5, high + 0.5),
            _ => (low - 0.5 * low.abs().max(1e-9), high + 0.5 * high.abs().max(1e-9)),
        }
    }

    pub(super) fn ticks(&self, (low, high): (f64, f64), wanted: usize) -> Vec<f64> {
        match self.scale {
            _ if !self.categories.is_empty() => {
                ticks::places(self.categories.len(), wanted).into_iter().map(|place| place as f64).collect()
            }
            Scale::Linear if self.whole => {
                let mut ticks = ticks::round_values(low, high, wanted);
                ticks.retain(|tick| (tick - tick.round()).abs() < 1e-9);
                ticks
            }
            Scale::Linear => ticks::round_values(low, high, wanted),
            Scale::Log => ticks::decades(low, high, wanted),
        }
    }

    pub(super) fn tick_label(&self, place: f64) -> String {
        match self.scale {
            _ if !self.categories.is_empty() => {
                self.categories.get(place.round().max(0.0) as usize).cloned().unwrap_or_default()
            }
            Scale::Linear => short(if place.abs() < 1e-12 { 0.0 } else { place }),
            Scale::Log => short(10f64.powf(place)),
        }
    }
}

impl Shape {
    fn xs(&self) -> Vec<f64> {
        match self {
            Shape::Line(points) | Shape::Points(points) => points.iter().map(|p| p.0).collect(),
            Shape::Steps(edges, _) => edges.clone(),
            Shape::Upright(x) => vec![*x],
            Shape::Bars(_) | Shape::Boxes(_) | Shape::Level(_) => Vec::new(),
        }
    }

    fn ys(&self) -> Vec<f64> {
        match self {
            Shape::Line(points) | Shape::Points(points) => points.iter().map(|p| p.1).collect(),
            Shape::Steps(_, heights) | Shape::Bars(heights) => heights.clone(),
            Shape::Boxes(boxes) => boxes.iter().flatten().copied().collect(),
            Shape::Level(y) => vec![*y],
            Shape::Upright(_) => Vec::new(),
        }
    }

    /// Whether it is a line for orientation, not data.
    pub(super) fn is_guide(&self) -> bool {
        matches!(self, Shape::Level(_) | Shape::Upright(_))
    }
}

impl Chart {
    /// Whether no series but guide lines has a value that can be shown.
    pub(super) fn is_empty(&self) -> bool {
        let shown = |series: &Series| match &series.shape {
            Shape::Line(points) | Shape::Points(points) => !self.places(points).is_empty(),
            shape => !shape.is_guide() && shape.ys().into_iter().any(|y| self.y.place(y).is_some()),
        };
        !self.series.iter().any(shown)
    }

    /// Points as places on both axes; those that have none are left out.
    pub(super) fn places(&self, points: &[(f64, f64)]) -> Vec<(f64, f64)> {
        points.iter().filter_map(|(x, y)| Some((self.x.place(*x)?, self.y.place(*y)?))).collect()
    }

    /// Points as places of a curve: what a logarithmic axis cannot show for being 0 lies on its `floor`, so that the curve leads around no gap.
    pub(super) fn course(&self, points: &[(f64, f64)], floor: f64) -> Vec<(f64, f64)> {
        let height = |y: f64| self.y.place(y).or_else(|| (y == 0.0).then_some(floor));
        points.iter().filter_map(|(x, y)| Some((self.x.place(*x)?, height(*y)?))).collect()
    }

    /// The ranges of both axes, with a little room above and below, and beside points.
    pub(super) fn ranges(&self) -> ((f64, f64), (f64, f64)) {
        let xs = self.series.iter().flat_map(|series| series.shape.xs());
        let ys = self.series.iter().flat_map(|series| series.shape.ys());
        let (low, high) = self.y.range(ys);
        let room = 0.05 * (high - low);
        let low = if self.y.include == Some(low) { low } else { low - room };
        let (left, right) = self.x.range(xs);
        let dots = self.x.categories.is_empty() && self.series.iter().any(|s| matches!(s.shape, Shape::Points(_)));
        let beside = if dots { 0.02 * (right - left) } else { 0.0 };
        ((left - beside, right + beside), (low, high + room))
    }

    /// The series of bars with their places among all series.
    pub(super) fn bars(&self) -> Vec<(usize, &Vec<f64>)> {
        self.series
            .iter()
            .enumerate()
            .filter_map(|(index, series)| match &series.shape {
                Shape::Bars(values) => Some((index, values)),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(y: Axis, points: &[(f64, f64)]) -> Chart {
        let series = vec![Series { name: String::new(), shape: Shape::Line(points.to_vec()) }];
        Chart { x: Axis::whole("Layer"), y, series, wide: false }
    }

    #[test]
    fn nothing_stands_between_layers() {
        assert_eq!(Axis::whole("Layer").ticks((0.0, 1.0), 6), [0.0, 1.0]);
        assert_eq!(Axis::whole("Layer").ticks((-0.06, 3.06), 6), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(Axis::linear("x").ticks((0.0, 1.0), 3), [0.0, 0.5, 1.0]);
    }

    #[test]
    fn charts_are_empty_where_no_point_has_a_place() {
        assert!(curve(Axis::log("y"), &[(0.0, 0.0), (1.0, -1.0), (f64::NAN, 1.0)]).is_empty());
        assert!(!curve(Axis::linear("y"), &[(0.0, 0.0)]).is_empty());
        assert!(!curve(Axis::log("y"), &[(0.0, 0.0), (1.0, 2.0)]).is_empty());
    }

    #[test]
    fn curves_on_a_logarithmic_axis_fall_to_the_floor_at_0() {
        let points = [(0.0, 10.0), (1.0, 0.0), (2.0, f64::NAN), (3.0, 100.0)];
        assert_eq!(curve(Axis::log("y"), &points).course(&points, -9.0), [(0.0, 1.0), (1.0, -9.0), (3.0, 2.0)]);
    }
}
