//! What a page needs to say the values of a picture under the pointer. The page decides how it says them.

use serde::Serialize;

use super::chart::Scale;

/// The part of a drawing that holds data, in CSS pixels, and what its axes mean.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hover {
    /// Left, top, right and bottom of the data, in CSS pixels of the unscaled drawing.
    pub frame: [f64; 4],
    /// The horizontal axis.
    pub x: AxisHover,
    /// The vertical axis.
    pub y: AxisHover,
    /// The names of the series in drawing order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<String>,
    /// The exact values of a grid of cells or of bars, where the picture is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<GridHover>,
}

/// One axis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AxisHover {
    /// Its label.
    pub label: String,
    /// The value at the left or the bottom; its logarithm where the axis is logarithmic.
    pub low: f64,
    /// The value at the right or the top.
    pub high: f64,
    /// Whether the values above are logarithms to base 10.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
}

/// The cells of a picture, row by row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GridHover {
    /// Whether each row has its own place; otherwise the rows of a column stand at one place, side by side or above each other.
    pub cells: bool,
    /// Names of the columns, left to right.
    pub columns: Vec<String>,
    /// Names of the rows, top to bottom.
    pub rows: Vec<String>,
    /// The values as shown, `rows` times `columns`.
    pub values: Vec<Vec<String>>,
}

impl AxisHover {
    pub(super) fn new(label: &str, (low, high): (f64, f64), scale: Scale) -> AxisHover {
        AxisHover { label: label.to_owned(), low, high, log: scale == Scale::Log }
    }
}
