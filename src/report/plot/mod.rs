//! Plots as values, and how they become SVG. It knows nothing of models, pages or files.
//!
//! A [`Figure`] says what is to be seen; [`Figure::draw`] gives the picture. Colours are fixed hexadecimal values from [`colour`], so that a page can
//! restyle the picture with attribute selectors (dark mode) while the same bytes stand alone as a file.

mod chart;
pub mod colour;
mod heat;
mod hover;
mod paint;
mod sheet;
mod thin;
mod ticks;

pub use chart::{Axis, Chart, Scale, Series, Shape};
pub use heat::{HeatMap, Shades};
pub use hover::{GridHover, Hover};
pub use thin::{CURVE_POINTS, sorted_curve, thin};
pub use ticks::{figures, short};

use crate::error::Result;

/// Units of a drawing for each CSS pixel: coordinates are whole numbers, so curves need units finer than a pixel.
pub const UNITS: u32 = 4;

/// A picture with its words.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// The stem of its file, stable from run to run.
    pub name: String,
    /// One line above the picture.
    pub title: String,
    /// How to read it: a sentence or two below the picture.
    pub caption: String,
    /// What is drawn.
    pub plot: Plot,
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Plot {
    /// Curves, bars, points or boxes over two axes.
    Chart(Chart),
    /// A grid of coloured cells.
    Heat(HeatMap),
}

/// A picture as SVG text.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawing {
    /// A whole SVG document.
    pub svg: String,
    /// Width in CSS pixels.
    pub width: u32,
    /// Height in CSS pixels.
    pub height: u32,
    /// What a page needs to say values under the pointer.
    pub hover: Hover,
}

impl Figure {
    /// Whether there is nothing to see: no finite value at all.
    pub fn is_empty(&self) -> bool {
        match &self.plot {
            Plot::Chart(chart) => chart.is_empty(),
            Plot::Heat(map) => map.is_empty(),
        }
    }

    /// Whether the picture wants the whole width of a page.
    pub fn is_wide(&self) -> bool {
        match &self.plot {
            Plot::Chart(chart) => chart.wide,
            Plot::Heat(_) => true,
        }
    }

    /// Draws the picture, with the title inside where `titled`.
    ///
    /// # Errors
    /// [`crate::error::ReportError::Plot`] where the drawing library refuses.
    pub fn draw(&self, titled: bool) -> Result<Drawing> {
        let title = titled.then_some(self.title.as_str());
        let drawn = match &self.plot {
            Plot::Chart(chart) => paint::draw(chart, title),
            Plot::Heat(map) => heat::draw(map, title),
        };
        drawn.map_err(|reason| sheet::refused(&self.name, &reason))
    }
}
