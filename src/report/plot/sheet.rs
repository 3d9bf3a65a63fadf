//! The sheet that a picture is drawn on: sizes, fonts, title and legend, and what the drawing library's output still lacks.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::UNITS;
use super::colour::{INK, PAPER};
use crate::error::{Error, ReportError};

/// A drawing area.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Why the drawing library refused.
pub(super) type Refusal = Box<dyn std::error::Error>;

/// Font size of ticks and labels in CSS pixels.
pub(super) const TEXT: f64 = 12.0;
/// Font size of the title in CSS pixels.
const TITLE: f64 = 14.0;
/// Height of the title and of a row of the legend in CSS pixels.
const LINE: u32 = 20;

pub(super) fn refused(name: &str, reason: &Refusal) -> Error {
    ReportError::Plot { name: name.to_owned(), reason: reason.to_string() }.into()
}

/// Gives drawing units for CSS pixels.
pub(super) fn units(pixels: f64) -> i32 {
    (pixels * f64::from(UNITS)).round() as i32
}

/// The width of a text in CSS pixels, estimated without a font: wide enough for common sans-serif faces.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().map(|c| if "iljtf.,:;|'()[] ".contains(c) { 0.36 } else { 0.6 }).sum::<f64>() * size
}

/// Text of `size` CSS pixels. The drawing library writes 1/1.24 of the size it is given into the file.
pub(super) fn font(size: f64, colour: RGBColor, anchor: (HPos, VPos)) -> TextStyle<'static> {
    ("sans-serif", size * 1.24 * f64::from(UNITS)).into_font().color(&colour).pos(Pos::new(anchor.0, anchor.1))
}

/// A line of `width` CSS pixels.
pub(super) fn line(colour: RGBColor, width: f64) -> ShapeStyle {
    ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: (width * f64::from(UNITS)).round() as u32 }
}

/// Draws on a white sheet of `width` times `height` CSS pixels and gives the SVG with what `draw` found out.
pub(super) fn on_sheet<T>(
    (width, height): (u32, u32),
    draw: impl FnOnce(&Area) -> Result<T, Refusal>,
) -> Result<(String, T), Refusal> {
    let mut svg = String::new();
    let result = {
        let area = SVGBackend::with_string(&mut svg, (width * UNITS, height * UNITS)).into_drawing_area();
        area.fill(&PAPER)?;
        let result = draw(&area)?;
        area.present()?;
        result
    };
    Ok((tidy(&svg), result))
}

/// Says once at the root what the drawing library repeats in every element, and takes out what is so anyway: half of the file.
fn tidy(svg: &str) -> String {
    let shared = "<svg font-family=\"sans-serif\" stroke-linejoin=\"round\" ";
    let svg = [" opacity=\"1\"", " stroke=\"none\"", " font-family=\"sans-serif\""]
        .into_iter()
        .fold(svg.to_owned(), |svg, attribute| svg.replace(attribute, ""));
    merge_dots(&svg.replace(" \"/>", "\"/>")).replacen("<svg ", shared, 1)
}

/// Writes runs of equal circles as one path of round dots: a fifth of the bytes.
fn merge_dots(svg: &str) -> String {
    let mut merged = String::with_capacity(svg.len());
    let mut style = "";
    for line in svg.lines() {
        let dot = dot(line);
        if !style.is_empty() && dot.is_none_or(|dot| dot.2 != style) {
            merged.push_str(&path_end(style));
            style = "";
        }
        match dot {
            None => merged.extend([line, "\n"]),
            Some((x, y, look)) => {
                if style.is_empty() {
                    merged.push_str("<path stroke-linecap=\"round\" d=\"");
                    style = look;
                }
                merged.push_str(&format!("M{x} {y}h1"));
            }
        }
    }
    merged
}

/// The place and the rest of the attributes of a circle.
fn dot(line: &str) -> Option<(&str, &str, &str)> {
    let (x, rest) = line.strip_prefix("<circle cx=\"")?.split_once("\" cy=\"")?;
    let (y, look) = rest.split_once("\" r=\"")?;
    Some((x, y, look))
}

/// The attributes of a path that looks like circles of this radius, opacity and fill.
fn path_end(look: &str) -> String {
    let (radius, look) = look.split_once('"').unwrap_or((look, "/>"));
    let width = 2 * radius.parse::<u32>().unwrap_or_default();
    let look = look.replace("stroke-width=\"1\"", "").replace("fill=", "stroke=");
    format!("\" stroke-width=\"{width}\"{look}\n")
}

/// Cuts a name that is wider than `width` CSS pixels and says so with an ellipsis.
pub(super) fn cut(name: &str, width: f64) -> String {
    if text_width(name, TEXT) <= width {
        return name.to_owned();
    }
    let mut short: String = name.to_owned();
    while text_width(&short, TEXT) > width - 10.0 && short.pop().is_some() {}
    short + "…"
}

/// Draws the title at the top and gives the height it took, in CSS pixels.
pub(super) fn title(area: &Area, text: Option<&str>) -> Result<u32, Refusal> {
    let Some(text) = text else { return Ok(0) };
    let style = font(TITLE, INK, (HPos::Left, VPos::Top));
    area.draw(&Text::new(text.to_owned(), (units(8.0), units(6.0)), style))?;
    Ok(LINE + 6)
}

/// Gives the rows of a legend: which names stand side by side.
fn legend_rows(names: &[(String, RGBColor)], width: f64) -> Vec<Vec<(&str, RGBColor, f64)>> {
    let (mut rows, mut at) = (vec![Vec::new()], 8.0);
    for (name, colour) in names {
        let wide = 24.0 + text_width(name, TEXT);
        let full = at + wide > width && rows.last().is_some_and(|row: &Vec<_>| !row.is_empty());
        if full {
            rows.push(Vec::new());
            at = 8.0;
        }
        if let Some(row) = rows.last_mut() {
            row.push((name.as_str(), *colour, at));
        }
        at += wide + 10.0;
    }
    rows
}

/// The height of a legend in CSS pixels.
pub(super) fn legend_height(names: &[(String, RGBColor)], width: u32) -> u32 {
    if names.is_empty() { 0 } else { legend_rows(names, f64::from(width)).len() as u32 * LINE }
}

/// Draws a legend from `top` down.
pub(super) fn legend(area: &Area, names: &[(String, RGBColor)], width: u32, top: u32) -> Result<(), Refusal> {
    if names.is_empty() {
        return Ok(());
    }
    let style = font(TEXT, INK, (HPos::Left, VPos::Center));
    for (row, entries) in legend_rows(names, f64::from(width)).into_iter().enumerate() {
        let middle = f64::from(top + row as u32 * LINE) + f64::from(LINE) / 2.0;
        for (name, colour, left) in entries {
            let corners = [(units(left), units(middle - 5.0)), (units(left + 10.0), units(middle + 5.0))];
            area.draw(&Rectangle::new(corners, colour.filled()))?;
            area.draw(&Text::new(name.to_owned(), (units(left + 15.0), units(middle)), style.clone()))?;
        }
    }
    Ok(())
}
