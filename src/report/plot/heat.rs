//! Heat maps: a grid of coloured cells with a scale beside it, from two columns to hundreds.

use std::collections::BTreeMap;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::chart::Scale;
use super::colour::{INK, MARKED, MISSING, readable_on, viridis};
use super::hover::{AxisHover, GridHover, Hover};
use super::sheet::{self, Area, Refusal, TEXT, cut, font, text_width, units};
use super::{Drawing, short, ticks};

/// What the colours of a heat map mean.
#[derive(Debug, Clone, PartialEq)]
pub enum Shades {
    /// From the lowest to the highest value, or over a given range.
    Range(Scale, Option<(f64, f64)>),
    /// Each whole number is one of these named kinds; those from the given one on are marked as exceptions.
    Kinds(Vec<String>, usize),
}

/// A grid of values.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// What the columns are.
    pub x_label: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Names of the rows, top to bottom.
    pub rows: Vec<String>,
    /// `rows` times `columns` values; not finite where there is none.
    pub values: Vec<Vec<f64>>,
    /// What the values are, with the unit.
    pub value_label: String,
    /// What the colours mean.
    pub shades: Shades,
}

/// Sizes in CSS pixels.
const MAX_WIDTH: f64 = 940.0;
const MIN_WIDTH: f64 = 420.0;
const MAX_CELL: f64 = 76.0;
const ROW: f64 = 24.0;
const BELOW: f64 = 44.0;
const SCALE_WIDTH: f64 = 96.0;
/// The narrowest cell that is set apart from its neighbours.
const GAPPED: f64 = 12.0;
/// The narrowest cell in which a value is written.
const VALUED_CELL: f64 = 44.0;
/// Names of rows are cut at this width.
const NAMES: f64 = 190.0;

/// Where things are on the sheet, in CSS pixels.
struct Frame {
    left: f64,
    top: f64,
    cell: f64,
    row: f64,
    right: f64,
    bottom: f64,
}

impl HeatMap {
    pub(super) fn is_empty(&self) -> bool {
        !self.values.iter().flatten().any(|value| value.is_finite())
    }

    fn frame(&self, top: f64) -> Frame {
        let names = self.rows.iter().map(|name| text_width(name, TEXT)).fold(20.0, f64::max).min(NAMES);
        let left = names + 14.0;
        let columns = self.columns.len().max(1) as f64;
        let cell = ((MAX_WIDTH - left - SCALE_WIDTH) / columns).min(MAX_CELL);
        let row = if self.rows.len() > 24 { (600.0 / self.rows.len() as f64).max(2.0) } else { ROW };
        let bottom = top + row * self.rows.len() as f64;
        Frame { left, top, cell, row, right: left + cell * columns, bottom }
    }

    /// The range of the colours, as places: logarithms where the scale is logarithmic.
    fn range(&self, scale: Scale, given: Option<(f64, f64)>) -> (f64, f64) {
        let place = |v: f64| if scale == Scale::Log { v.log10() } else { v };
        if let Some((low, high)) = given {
            return (place(low), place(high));
        }
        let places = self.values.iter().flatten().map(|v| place(*v)).filter(|v| v.is_finite());
        places.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)))
    }

    fn colour(&self, value: f64) -> RGBColor {
        match &self.shades {
            _ if !value.is_finite() => MISSING,
            Shades::Kinds(kinds, marked) => kind_colour(value as usize, kinds.len(), *marked),
            Shades::Range(scale, given) => {
                let (low, high) = self.range(*scale, *given);
                let place = if *scale == Scale::Log { value.log10() } else { value };
                viridis(if high > low { (place.max(low) - low) / (high - low) } else { 0.5 })
            }
        }
    }

    fn text(&self, value: f64) -> String {
        match &self.shades {
            _ if !value.is_finite() => "–".to_owned(),
            Shades::Kinds(kinds, _) => kinds.get(value as usize).cloned().unwrap_or_default(),
            Shades::Range(..) => short(value),
        }
    }
}

/// Kinds before `marked` take quiet colours of the map, the others the colour of exceptions.
fn kind_colour(kind: usize, kinds: usize, marked: usize) -> RGBColor {
    if kind >= marked { MARKED } else { viridis(0.25 + 0.55 * kind as f64 / kinds.max(2) as f64) }
}

/// Draws a heat map.
pub(super) fn draw(map: &HeatMap, title: Option<&str>) -> Result<Drawing, Refusal> {
    let top = if title.is_some() { 34.0 } else { 8.0 };
    let frame = map.frame(top);
    let width = (frame.right + SCALE_WIDTH).max(MIN_WIDTH).ceil() as u32;
    let height = (frame.bottom + BELOW).max(top + 130.0).ceil() as u32;
    let (mut svg, ()) = sheet::on_sheet((width, height), |area| {
        sheet::title(area, title)?;
        cell_values(area, map, &frame)?;
        names(area, map, &frame)?;
        match &map.shades {
            Shades::Kinds(kinds, marked) => kinds_legend(area, kinds, *marked, &frame),
            Shades::Range(scale, given) => colour_scale(area, map, map.range(*scale, *given), *scale, &frame),
        }
    })?;
    if let Some(end_of_paper) = svg.find("/>") {
        svg.insert_str(end_of_paper + 2, &cells(map, &frame));
    }
    Ok(Drawing { svg, width, height, hover: hover(map, &frame) })
}

/// The cells as one path for each colour: a rectangle of its own for each would be three times as long.
fn cells(map: &HeatMap, frame: &Frame) -> String {
    let tall = frame.row > GAPPED;
    let [gap_x, gap_y] = [tall && frame.cell > GAPPED, tall].map(|wide| if wide { units(1.0) } else { 0 });
    let mut paths = BTreeMap::<[u8; 3], String>::new();
    for (row, values) in map.values.iter().enumerate() {
        let [top, bottom] = [row, row + 1].map(|edge| units(frame.top + edge as f64 * frame.row));
        for (column, value) in values.iter().enumerate() {
            let [left, right] = [column, column + 1].map(|edge| units(frame.left + edge as f64 * frame.cell));
            let RGBColor(red, green, blue) = map.colour(*value);
            let (wide, tall) = ((right - left - gap_x).max(1), (bottom - top - gap_y).max(1));
            let path = paths.entry([red, green, blue]).or_default();
            path.push_str(&format!("M{left} {top}h{wide}v{tall}h-{wide}z"));
        }
    }
    // Where cells touch, smooth edges would let the paper shine through.
    let edges = if gap_x == 0 { " shape-rendering=\"crispEdges\"" } else { "" };
    let path = |([red, green, blue], d): ([u8; 3], String)| {
        format!("\n<path{edges} fill=\"#{red:02X}{green:02X}{blue:02X}\" d=\"{d}\"/>")
    };
    paths.into_iter().map(path).collect()
}

fn cell_values(area: &Area, map: &HeatMap, frame: &Frame) -> Result<(), Refusal> {
    if frame.cell < VALUED_CELL || frame.row < ROW {
        return Ok(());
    }
    for (row, values) in map.values.iter().enumerate() {
        for (column, value) in values.iter().enumerate() {
            let text = map.text(*value);
            if text_width(&text, TEXT - 1.0) < frame.cell {
                let middle = |start: f64, place: usize, size: f64| units(start + (place as f64 + 0.5) * size);
                let at = (middle(frame.left, column, frame.cell), middle(frame.top, row, frame.row));
                area.draw(&Text::new(text, at, font(TEXT - 1.0, readable_on(map.colour(*value)), CENTRE)))?;
            }
        }
    }
    Ok(())
}

const CENTRE: (HPos, VPos) = (HPos::Center, VPos::Center);

fn names(area: &Area, map: &HeatMap, frame: &Frame) -> Result<(), Refusal> {
    let right = font(TEXT, INK, (HPos::Right, VPos::Center));
    let step = (16.0 / frame.row).ceil().max(1.0) as usize;
    for (row, name) in map.rows.iter().enumerate().step_by(step) {
        let middle = frame.top + (row as f64 + 0.5) * frame.row;
        let name = cut(name, NAMES);
        area.draw(&Text::new(name, (units(frame.left - 6.0), units(middle)), right.clone()))?;
    }
    let widest = map.columns.iter().map(|name| text_width(name, TEXT)).fold(18.0, f64::max);
    let room = ((frame.right - frame.left) / (widest + 10.0)).max(1.0) as usize;
    for column in ticks::places(map.columns.len(), room.min(30)) {
        let middle = frame.left + (column as f64 + 0.5) * frame.cell;
        let at = (units(middle), units(frame.bottom + 6.0));
        area.draw(&Text::new(map.columns[column].clone(), at, font(TEXT, INK, (HPos::Center, VPos::Top))))?;
    }
    let middle = f64::midpoint(frame.left, frame.right);
    let at = (units(middle), units(frame.bottom + BELOW - 8.0));
    area.draw(&Text::new(map.x_label.clone(), at, font(TEXT, INK, (HPos::Center, VPos::Bottom))))?;
    Ok(())
}

fn colour_scale(
    area: &Area,
    map: &HeatMap,
    (low, high): (f64, f64),
    scale: Scale,
    frame: &Frame,
) -> Result<(), Refusal> {
    let (left, top) = (frame.right + 16.0, frame.top + 18.0);
    let tall = (frame.bottom - top).max(72.0);
    let label = font(TEXT - 1.0, INK, (HPos::Left, VPos::Center));
    area.draw(&Text::new(
        cut(&map.value_label, SCALE_WIDTH - 10.0),
        (units(left), units(frame.top + 6.0)),
        label.clone(),
    ))?;
    let steps = if high > low { 24 } else { 1 };
    // From the brightest down, each over the rest of the scale: side by side, paper would shine through the seams.
    for step in (0..steps).rev() {
        let from = top + tall - f64::from(step + 1) * tall / f64::from(steps);
        let share = if steps == 1 { 0.5 } else { f64::from(step) / f64::from(steps - 1) };
        let corners = [(units(left), units(from)), (units(left + 14.0), units(top + tall))];
        area.draw(&Rectangle::new(corners, viridis(share).filled()))?;
    }
    let shares: &[f64] = if steps == 1 { &[0.5] } else { &[0.0, 0.5, 1.0] };
    for share in shares {
        let place = low + share * (high - low);
        let value = if scale == Scale::Log { 10f64.powf(place) } else { place };
        let at = (units(left + 19.0), units((top + tall * (1.0 - share)).clamp(top + 5.0, top + tall - 5.0)));
        area.draw(&Text::new(short(value), at, label.clone()))?;
    }
    Ok(())
}

fn kinds_legend(area: &Area, kinds: &[String], marked: usize, frame: &Frame) -> Result<(), Refusal> {
    let style = font(TEXT - 1.0, INK, (HPos::Left, VPos::Center));
    for (kind, name) in kinds.iter().enumerate() {
        let (left, middle) = (frame.right + 16.0, frame.top + 8.0 + 18.0 * kind as f64);
        let corners = [(units(left), units(middle - 6.0)), (units(left + 12.0), units(middle + 6.0))];
        area.draw(&Rectangle::new(corners, kind_colour(kind, kinds.len(), marked).filled()))?;
        let name = cut(name, SCALE_WIDTH - 34.0);
        area.draw(&Text::new(name, (units(left + 17.0), units(middle)), style.clone()))?;
    }
    Ok(())
}

fn hover(map: &HeatMap, frame: &Frame) -> Hover {
    let texts = |row: &Vec<f64>| row.iter().map(|value| map.text(*value)).collect();
    Hover {
        frame: [frame.left, frame.top, frame.right, frame.bottom].map(|v| (v * 10.0).round() / 10.0),
        x: AxisHover::new(&map.x_label, (0.0, map.columns.len() as f64), Scale::Linear),
        y: AxisHover::new(&map.value_label, (0.0, map.rows.len() as f64), Scale::Linear),
        series: Vec::new(),
        grid: Some(GridHover {
            cells: true,
            columns: map.columns.clone(),
            rows: map.rows.clone(),
            values: map.values.iter().map(texts).collect(),
        }),
    }
}
