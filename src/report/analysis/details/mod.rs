//! Section with panels: everything about one input with its tensors, or about one gate.

mod gates;
mod inputs;
mod tensors;

use std::collections::BTreeSet;

use super::common::pairs;
use crate::analysis::Analysis;
use crate::analysis::record::Histogram;
use crate::report::page::{Block, Choice, Panel, Section};
use crate::report::plot::{Shape, thin};

/// Points of a curve in a panel: two for each CSS pixel of a chart's width would not be seen.
const CURVE: usize = 256;
/// Points of a cloud.
const CLOUD: usize = 240;
/// Points of a cloud that are kept for being the lowest, and as many for being the highest.
const EXTREMES: usize = 8;

/// Section: panels of chosen inputs and gates.
pub(super) fn section(analysis: &Analysis) -> Section {
    let groups = analysis.group_details.iter().filter_map(|detail| inputs::panel(analysis, detail));
    let mut groups: Vec<(f32, Panel)> = groups.collect();
    groups.sort_by(|a, b| b.0.total_cmp(&a.0));
    let gates = analysis.gate_details.iter().map(|detail| gates::panel(analysis, detail));
    let panels = alternate(groups.into_iter().map(|(_, panel)| panel).collect(), gates.collect());
    Section {
        id: "details".into(),
        title: "Inputs and tensors in detail".into(),
        words: vec!["Everything about one input and the tensors that read it, or about one gate. Choose a layer and a name, or come here from the tables above. The panel shown first has the largest output error. Curves of many channels are thinned; every stretch keeps its lowest and highest point.".into()],
        blocks: vec![Block::Choice(Choice { id: "panels".into(), panels })],
        ..Section::default()
    }
}

/// Takes from both lists in turn, so that neither is lost where there is room for few.
fn alternate(first: Vec<Panel>, second: Vec<Panel>) -> Vec<Panel> {
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::new();
    loop {
        match (first.next(), second.next()) {
            (None, None) => return all,
            (a, b) => all.extend(a.into_iter().chain(b)),
        }
    }
}

fn line(points: &[(f64, f64)]) -> Shape {
    Shape::Line(thin(points, CURVE))
}

/// The cumulative shares of a histogram at the upper ends of its bins.
fn cumulative(histogram: &Histogram) -> Vec<(f64, f64)> {
    let total = histogram.counts.iter().sum::<u64>() + histogram.below + histogram.above;
    let width = f64::from(histogram.high - histogram.low) / histogram.counts.len().max(1) as f64;
    let mut below = histogram.below;
    let start = (f64::from(histogram.low), below as f64 / total.max(1) as f64);
    let rest = histogram.counts.iter().enumerate().map(|(bin, count)| {
        below += count;
        (f64::from(histogram.low) + width * (bin + 1) as f64, below as f64 / total.max(1) as f64)
    });
    std::iter::once(start).chain(rest).collect()
}

/// Points at evenly spread ranks of their first number, and the ones with the most extreme second: thinned as a curve, a cloud would look
/// like two bands.
fn cloud(x: &[f32], y: &[f32]) -> Shape {
    let mut points = pairs(x, y);
    points.retain(|(x, y)| x.is_finite() && y.is_finite());
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    if points.len() <= CLOUD {
        return Shape::Points(points);
    }
    let mut by_height: Vec<usize> = (0..points.len()).collect();
    by_height.sort_by(|a, b| points[*a].1.total_cmp(&points[*b].1));
    let ends = by_height.iter().take(EXTREMES).chain(by_height.iter().rev().take(EXTREMES)).copied();
    let even = (0..CLOUD).map(|i| i * (points.len() - 1) / (CLOUD - 1));
    let kept: BTreeSet<usize> = even.chain(ends).collect();
    Shape::Points(kept.into_iter().map(|place| points[place]).collect())
}
