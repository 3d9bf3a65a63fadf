//! Paints charts. Every axis is linear for the drawing library; logarithms are taken before.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::chart::{Axis, Chart, Shape};
use super::colour::{GRID, INK, series as series_colour};
use super::hover::{AxisHover, GridHover, Hover};
use super::sheet::{self, Area, Refusal, TEXT, font, line, text_width, units};
use super::{Drawing, short};

type Context<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Span, Span>>;
type Ranges = ((f64, f64), (f64, f64));

/// Sizes in CSS pixels: a chart in a column of the page, and one across it.
const NARROW: (u32, u32) = (430, 264);
const WIDE: (u32, u32) = (940, 300);
/// Room for the label of the horizontal axis with its ticks, in CSS pixels.
const BELOW: u32 = 40;
/// The same where the axis has no label.
const BELOW_UNLABELLED: u32 = 22;
/// Height of a row of category names, in CSS pixels.
const NAME_ROW: u32 = 15;
/// Room left of the vertical axis' label, of which the drawing library would cut the ascenders.
const LEFT: u32 = 4;
/// Room right of the data, so that the last tick label fits.
const RIGHT: u32 = 18;

/// A linear axis whose ticks are given.
struct Span {
    range: (f64, f64),
    ticks: Vec<f64>,
}

impl Ranged for Span {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let (low, high) = self.range;
        let share = (value - low) / (high - low);
        (f64::from(first) + share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.0..self.range.1
    }
}

/// Draws a chart.
pub(super) fn draw(chart: &Chart, title: Option<&str>) -> Result<Drawing, Refusal> {
    let names = legend_names(chart);
    let (width, height) = if chart.wide { WIDE } else { NARROW };
    let height = height - BELOW
        + below(chart, width)
        + if title.is_some() { 26 } else { 0 }
        + sheet::legend_height(&names, width);
    let (svg, hover) = sheet::on_sheet((width, height), |area| {
        let used = sheet::title(area, title)?;
        sheet::legend(area, &names, width, used + 2)?;
        paint(area, chart, width, used + sheet::legend_height(&names, width) + 10)
    })?;
    Ok(Drawing { svg, width, height, hover })
}

/// The legend, left out where a single series needs no name.
fn legend_names(chart: &Chart) -> Vec<(String, RGBColor)> {
    let named = chart.series.iter().enumerate().filter(|(_, series)| !series.name.is_empty());
    let names: Vec<_> =
        named.map(|(i, series)| (sheet::cut(&series.name, 200.0), colour_of(&series.shape, i))).collect();
    if chart.series.len() < 2 { Vec::new() } else { names }
}

fn colour_of(shape: &Shape, index: usize) -> RGBColor {
    if shape.is_guide() { INK } else { series_colour(index) }
}

fn paint(area: &Area, chart: &Chart, width: u32, top: u32) -> Result<Hover, Refusal> {
    let ranges = chart.ranges();
    let (x_ticks, y_ticks) = (x_ticks(chart, ranges.0, width), chart.y.ticks(ranges.1, 5));
    let left = y_ticks.iter().map(|tick| text_width(&chart.y.tick_label(*tick), TEXT)).fold(20.0, f64::max) + 28.0;
    let inner = area.margin(units(f64::from(top)), 0, units(f64::from(LEFT)), units(f64::from(RIGHT)));
    let mut context = ChartBuilder::on(&inner)
        .x_label_area_size(units(f64::from(below(chart, width))))
        .y_label_area_size(units(left))
        .build_cartesian_2d(Span { range: ranges.0, ticks: x_ticks }, Span { range: ranges.1, ticks: y_ticks })?;
    mesh(&mut context, chart)?;
    for (index, series) in chart.series.iter().enumerate() {
        let colour = colour_of(&series.shape, index);
        shape(&mut context, chart, &series.shape, colour, ranges)?;
    }
    bars(&mut context, chart, f64::from(width - LEFT - RIGHT) - left)?;
    category_names(area, &context, chart, width)?;
    Ok(hover(&context, chart, ranges))
}

/// Ticks of the horizontal axis: as many as their labels leave room for.
fn x_ticks(chart: &Chart, range: (f64, f64), width: u32) -> Vec<f64> {
    if !chart.x.categories.is_empty() {
        return Vec::new();
    }
    chart.x.ticks(range, ((room(width) / 50.0) as usize).clamp(2, 30))
}

/// About how wide the data is, in CSS pixels.
fn room(width: u32) -> f64 {
    f64::from(width) - 90.0
}

/// How the names of categories are shown: in how many rows, and every how many-th.
fn name_layout(chart: &Chart, width: u32) -> (usize, usize) {
    let slot = room(width) / chart.x.categories.len().max(1) as f64;
    let widest = chart.x.categories.iter().map(|name| text_width(name, TEXT)).fold(0.0, f64::max);
    match () {
        () if widest <= slot => (1, 1),
        () if slot >= 28.0 => (2, 1),
        () => (1, ((widest + 12.0) / slot).ceil() as usize),
    }
}

/// Room below the data in CSS pixels.
fn below(chart: &Chart, width: u32) -> u32 {
    let rows = if chart.x.categories.is_empty() { 1 } else { name_layout(chart, width).0 as u32 };
    (rows - 1) * NAME_ROW + if chart.x.label.is_empty() { BELOW_UNLABELLED } else { BELOW }
}

/// Writes the names of categories; in two rows, by turns, where they would touch in one.
fn category_names(area: &Area, context: &Context, chart: &Chart, width: u32) -> Result<(), Refusal> {
    let (rows, step) = name_layout(chart, width);
    let slot = rows as f64 * step as f64 * room(width) / chart.x.categories.len().max(1) as f64;
    let style = font(TEXT, INK, (HPos::Center, VPos::Top));
    for (place, name) in chart.x.categories.iter().enumerate().step_by(step) {
        let (x, y) = context.backend_coord(&(place as f64, chart.ranges().1.0));
        let row = place % rows;
        let at = (x, y + units(5.0 + f64::from(NAME_ROW) * row as f64));
        area.draw(&Text::new(sheet::cut(name, slot), at, style.clone()))?;
    }
    Ok(())
}

fn mesh(context: &mut Context, chart: &Chart) -> Result<(), Refusal> {
    let mut mesh = context.configure_mesh();
    if !chart.x.categories.is_empty() {
        mesh.disable_x_mesh();
    }
    mesh.light_line_style(line(GRID, 0.0).color.mix(0.0))
        .bold_line_style(line(GRID, 1.0))
        .axis_style(line(INK, 1.0))
        .label_style(font(TEXT, INK, (HPos::Center, VPos::Center)))
        .axis_desc_style(font(TEXT, INK, (HPos::Center, VPos::Center)))
        .x_desc(chart.x.label.as_str())
        .y_desc(chart.y.label.as_str())
        .x_label_formatter(&|place| chart.x.tick_label(*place))
        .y_label_formatter(&|place| chart.y.tick_label(*place))
        .draw()?;
    Ok(())
}

/// The radius of points in CSS pixels: few are to be found, many are not to hide each other.
fn radius(chart: &Chart) -> f64 {
    let points = |series: &super::Series| if let Shape::Points(points) = &series.shape { points.len() } else { 0 };
    match chart.series.iter().map(points).sum() {
        ..=40 => 4.0,
        41..=800 => 2.5,
        _ => 1.5,
    }
}

fn shape(
    context: &mut Context,
    chart: &Chart,
    shape: &Shape,
    colour: RGBColor,
    ((x_low, x_high), (y_low, y_high)): Ranges,
) -> Result<(), Refusal> {
    let dotted = line(colour, 1.5);
    match shape {
        Shape::Line(points) => {
            context.draw_series(LineSeries::new(chart.course(points, y_low), line(colour, 1.75)))?;
        }
        Shape::Points(points) => {
            let radius = units(radius(chart));
            let dot = |place| Circle::new(place, radius, colour.mix(0.75).filled());
            context.draw_series(chart.places(points).into_iter().map(dot))?;
        }
        Shape::Steps(edges, heights) => steps(context, chart, edges, heights, colour, y_low)?,
        Shape::Bars(_) => {}
        Shape::Boxes(boxes) => {
            for (place, five) in boxes.iter().enumerate() {
                five_numbers(context, chart, place as f64, five, colour)?;
            }
        }
        Shape::Level(y) => {
            let y = chart.y.place(*y).into_iter();
            context.draw_series(y.map(|y| PathElement::new([(x_low, y), (x_high, y)], dotted)))?;
        }
        Shape::Upright(x) => {
            let x = chart.x.place(*x).filter(|x| (x_low..=x_high).contains(x)).into_iter();
            context.draw_series(x.map(|x| PathElement::new([(x, y_low), (x, y_high)], dotted)))?;
        }
    }
    Ok(())
}

/// A histogram as its outline, tinted down to the axis.
fn steps(
    context: &mut Context,
    chart: &Chart,
    edges: &[f64],
    heights: &[f64],
    colour: RGBColor,
    floor: f64,
) -> Result<(), Refusal> {
    let mut outline = Vec::with_capacity(2 * heights.len() + 2);
    for (span, height) in edges.windows(2).zip(heights) {
        if let (Some(low), Some(high)) = (chart.x.place(span[0]), chart.x.place(span[1])) {
            let height = chart.y.place(*height).unwrap_or(floor);
            outline.extend([(low, height), (high, height)]);
        }
    }
    let ends = outline.first().zip(outline.last()).map(|(first, last)| (first.0, last.0));
    let Some((first, last)) = ends else { return Ok(()) };
    outline.insert(0, (first, floor));
    outline.push((last, floor));
    context.draw_series([Polygon::new(outline.clone(), colour.mix(0.2))])?;
    context.draw_series([PathElement::new(outline, line(colour, 1.5))])?;
    Ok(())
}

fn five_numbers(
    context: &mut Context,
    chart: &Chart,
    place: f64,
    five: &[f64; 5],
    colour: RGBColor,
) -> Result<(), Refusal> {
    let Some(at) = five.iter().map(|v| chart.y.place(*v)).collect::<Option<Vec<f64>>>() else { return Ok(()) };
    let (half, stroke) = (0.3, line(colour, 1.5));
    let path = |ends: [(f64, f64); 2]| PathElement::new(ends, stroke);
    context.draw_series([
        Rectangle::new([(place - half, at[1]), (place + half, at[3])], colour.mix(0.25).filled()),
        Rectangle::new([(place - half, at[1]), (place + half, at[3])], stroke),
    ])?;
    context.draw_series([
        path([(place, at[0]), (place, at[1])]),
        path([(place, at[3]), (place, at[4])]),
        path([(place - half / 2.0, at[0]), (place + half / 2.0, at[0])]),
        path([(place - half / 2.0, at[4]), (place + half / 2.0, at[4])]),
        PathElement::new([(place - half, at[2]), (place + half, at[2])], line(colour, 3.0)),
    ])?;
    Ok(())
}

/// All series of bars, side by side within each category.
fn bars(context: &mut Context, chart: &Chart, room: f64) -> Result<(), Refusal> {
    let bars = chart.bars();
    let wide = 0.8 / bars.len().max(1) as f64;
    let floor = chart.y.include.and_then(|v| chart.y.place(v)).unwrap_or(chart.ranges().1.0);
    let pixels = wide * room / chart.x.categories.len().max(1) as f64;
    let widest =
        bars.iter().flat_map(|(_, values)| *values).map(|v| text_width(&short(*v), TEXT - 1.0)).fold(0.0, f64::max);
    let valued = widest <= pixels;
    for (rank, (index, values)) in bars.iter().enumerate() {
        for (category, value) in values.iter().enumerate() {
            let Some(top) = chart.y.place(*value) else { continue };
            let left = category as f64 - 0.4 + rank as f64 * wide;
            let corners = [(left, floor), (left + 0.94 * wide, top)];
            context.draw_series([Rectangle::new(corners, series_colour(*index).filled())])?;
            if valued {
                let style = font(TEXT - 1.0, INK, (HPos::Center, VPos::Bottom));
                context.draw_series([Text::new(short(*value), (left + 0.47 * wide, top), style)])?;
            }
        }
    }
    Ok(())
}

fn hover(context: &Context, chart: &Chart, ((x_low, x_high), (y_low, y_high)): Ranges) -> Hover {
    let pixel = |place| {
        let (x, y) = context.backend_coord(&place);
        [f64::from(x), f64::from(y)].map(|unit| unit / f64::from(super::UNITS))
    };
    let ([left, bottom], [right, top]) = (pixel((x_low, y_low)), pixel((x_high, y_high)));
    Hover {
        frame: [left, top, right, bottom],
        x: AxisHover::new(&chart.x.label, (x_low, x_high), chart.x.scale),
        y: AxisHover::new(&chart.y.label, (y_low, y_high), chart.y.scale),
        series: chart.series.iter().filter(|s| matches!(s.shape, Shape::Line(_))).map(|s| s.name.clone()).collect(),
        grid: by_category(chart, &chart.x),
    }
}

/// The values over named places, one row for each series.
fn by_category(chart: &Chart, x: &Axis) -> Option<GridHover> {
    if x.categories.is_empty() {
        return None;
    }
    let shown = |series: &&super::Series| !series.shape.is_guide();
    let values = |shape: &Shape| match shape {
        Shape::Bars(values) => values.iter().map(|v| short(*v)).collect(),
        Shape::Line(points) | Shape::Points(points) => points.iter().map(|p| short(p.1)).collect(),
        Shape::Boxes(boxes) => {
            boxes.iter().map(|b| format!("median {}, {} to {}", short(b[2]), short(b[0]), short(b[4]))).collect()
        }
        _ => Vec::new(),
    };
    Some(GridHover {
        cells: false,
        columns: x.categories.clone(),
        rows: chart.series.iter().filter(shown).map(|series| series.name.clone()).collect(),
        values: chart.series.iter().filter(shown).map(|series| values(&series.shape)).collect(),
    })
}
