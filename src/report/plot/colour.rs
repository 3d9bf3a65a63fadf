//! Colours that people with any colour vision can tell apart: the series of Okabe and Ito (2008) and the viridis map of matplotlib.

use plotters::style::RGBColor;

/// The sheet.
pub const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
/// Text and axes.
pub const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
/// A cell without a value.
pub const MISSING: RGBColor = RGBColor(0xe9, 0xec, 0xef);
/// A cell that stands apart from the scale.
pub const MARKED: RGBColor = RGBColor(0xd5, 0x5e, 0x01);

/// The colours of series, in the order in which they are given out.
pub const SERIES: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2), // blue
    RGBColor(0xd5, 0x5e, 0x00), // vermillion
    RGBColor(0x00, 0x9e, 0x73), // bluish green
    RGBColor(0xcc, 0x79, 0xa7), // reddish purple
    RGBColor(0xe6, 0x9f, 0x00), // orange
    RGBColor(0x56, 0xb4, 0xe9), // sky blue
    RGBColor(0x7a, 0x7f, 0x87), // grey in the place of black, which is the ink
];

/// The colour of the `index`-th series.
pub fn series(index: usize) -> RGBColor {
    SERIES[index % SERIES.len()]
}

/// Steps of the colour map: few enough that neighbours can be told apart, so that pictures stay small.
const STEPS: usize = 24;

/// Nine points of viridis, equally spaced.
const VIRIDIS: [(u8, u8, u8); 9] = [
    (0x44, 0x01, 0x54),
    (0x47, 0x2d, 0x7b),
    (0x3b, 0x52, 0x8b),
    (0x2c, 0x72, 0x8e),
    (0x21, 0x91, 0x8c),
    (0x28, 0xae, 0x80),
    (0x5e, 0xc9, 0x62),
    (0xad, 0xdc, 0x30),
    (0xfd, 0xe7, 0x25),
];

/// Gives the colour of `share` (0 dark, 1 bright; limited to that) on the viridis map.
pub fn viridis(share: f64) -> RGBColor {
    let step = (share.clamp(0.0, 1.0) * (STEPS - 1) as f64).round() / (STEPS - 1) as f64;
    let at = step * (VIRIDIS.len() - 1) as f64;
    let (low, rest) = (at.floor() as usize, at.fract());
    let (a, b) = (VIRIDIS[low], VIRIDIS[(low + 1).min(VIRIDIS.len() - 1)]);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * rest).round() as u8;
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

/// Gives black or white, whichever is easier to read on `ground` (WCAG 2.1 relative luminance).
pub fn readable_on(ground: RGBColor) -> RGBColor {
    // At this luminance black and white have the same contrast: (L + 0.05)² = 1.05 · 0.05.
    if luminance(ground) > 0.179 { RGBColor(0, 0, 0) } else { RGBColor(0xff, 0xff, 0xfe) }
}

fn luminance(RGBColor(red, green, blue): RGBColor) -> f64 {
    let linear = |part: u8| {
        let part = f64::from(part) / 255.0;
        if part <= 0.040_45 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contrast(a: RGBColor, b: RGBColor) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn the_map_runs_from_dark_to_bright() {
        assert_eq!((viridis(0.0), viridis(1.0)), (RGBColor(0x44, 0x01, 0x54), RGBColor(0xfd, 0xe7, 0x25)));
        assert_eq!((viridis(-3.0), viridis(9.0)), (viridis(0.0), viridis(1.0)));
        let steps: Vec<f64> = (0..=20).map(|i| luminance(viridis(f64::from(i) / 20.0))).collect();
        assert!(steps.is_sorted(), "{steps:?}");
    }

    #[test]
    fn text_on_every_colour_can_be_read() {
        for step in 0..=100 {
            let ground = viridis(f64::from(step) / 100.0);
            assert!(contrast(ground, readable_on(ground)) >= 4.5, "{ground:?}");
        }
        assert!(contrast(PAPER, INK) >= 7.0);
    }
}
