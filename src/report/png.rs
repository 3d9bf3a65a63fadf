//! Turns SVG into PNG with an embedded font, so that labels are there on machines without any. It draws what it is given.

use crate::error::{ReportError, Result};

/// Whether this build can write PNG.
pub const AVAILABLE: bool = cfg!(feature = "png");

/// Pixels for each CSS pixel: sharp on dense screens and in print, at a quarter of the bytes of the SVG's own units.
#[cfg(feature = "png")]
const PIXELS: f32 = 2.0;

/// Renders an SVG document of [`super::plot::UNITS`]; `name` is used in errors.
///
/// # Errors
/// [`ReportError::Png`] where the SVG cannot be read or is too large, or where this build has no PNG.
#[cfg(feature = "png")]
pub fn png(name: &str, svg: &str) -> Result<Vec<u8>> {
    use resvg::{tiny_skia, usvg};

    let refused = |reason: String| ReportError::Png { name: name.to_owned(), reason };
    let options = usvg::Options { fontdb: fonts(), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| refused(error.to_string()))?;
    let scale = PIXELS / super::plot::UNITS as f32;
    let [width, height] = [tree.size().width(), tree.size().height()].map(|side| (side * scale).ceil() as u32);
    let mut pixels =
        tiny_skia::Pixmap::new(width, height).ok_or_else(|| refused(format!("{width} × {height} pixels")))?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut pixels.as_mut());
    Ok(pixels.encode_png().map_err(|error| refused(error.to_string()))?)
}

/// The one font, read once.
#[cfg(feature = "png")]
fn fonts() -> std::sync::Arc<resvg::usvg::fontdb::Database> {
    use std::sync::{Arc, LazyLock};

    use resvg::usvg::fontdb::Database;

    static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
        let mut fonts = Database::new();
        fonts.load_font_data(dejavu::sans::regular().to_vec());
        fonts.set_sans_serif_family("DejaVu Sans");
        Arc::new(fonts)
    });
    Arc::clone(&FONTS)
}

/// Refuses: this build cannot write PNG.
///
/// # Errors
/// [`ReportError::Png`], always.
#[cfg(not(feature = "png"))]
pub fn png(name: &str, _svg: &str) -> Result<Vec<u8>> {
    Err(ReportError::Png { name: name.to_owned(), reason: "this build has no `png` feature".to_owned() }.into())
}
