//! Section on how alike the layers' inputs are.

use super::common::{Placed, by_layer, figure};
use crate::analysis::Analysis;
use crate::analysis::record::Similarity;
use crate::report::page::{Block, Section};
use crate::report::plot::{Figure, HeatMap, Plot, Scale, Shades};

/// Section: how alike the layers' inputs are.
pub(super) fn section(analysis: &Analysis) -> Section {
    let mut figures = vec![previous(analysis)];
    figures.extend(analysis.similarity.iter().filter(|similarity| similarity.layers.len() > 1).map(matrix));
    Section {
        id: "similarity".into(),
        title: "Similarity of layers".into(),
        words: vec![
            "How alike the channels of different layers' inputs are: the cosine between their vectors of E[x²], 1 for the same channels in the same proportion.".into(),
            "Bright blocks along the diagonal are runs of layers with the same large channels.".into(),
        ],
        follows: "Where layers are alike, one order of channels can serve all of them (a common permutation of the residual stream); where the cosine drops, each layer needs its own.".into(),
        blocks: vec![Block::Figures(figures)],
        ..Section::default()
    }
}

fn previous(analysis: &Analysis) -> Figure {
    let placed = analysis.groups.iter();
    let placed = placed.map(|g| Placed { kind: &g.kind, layer: g.layer, value: g.similarity_previous });
    let caption =
        "Each cell compares an input with that of the layer before; a dark cell is where the large channels change.";
    by_layer(placed).heat(
        "similarity_previous",
        "Likeness to the layer before",
        caption,
        "Cosine",
        Shades::Range(Scale::Linear, Some((0.0, 1.0))),
    )
}

fn matrix(similarity: &Similarity) -> Figure {
    let names: Vec<String> = similarity.layers.iter().map(u32::to_string).collect();
    let values = similarity.cosine.chunks(names.len().max(1)).map(|row| row.iter().map(|v| f64::from(*v)).collect());
    let values = values.take(names.len()).collect();
    let of = if similarity.measured_layers as usize > names.len() {
        format!(" {} of {} layers are shown, evenly spread.", names.len(), similarity.measured_layers)
    } else {
        String::new()
    };
    let map = HeatMap {
        x_label: "Layer".to_owned(),
        columns: names.clone(),
        rows: names,
        values,
        value_label: "Cosine".to_owned(),
        shades: Shades::Range(Scale::Linear, Some((0.0, 1.0))),
    };
    figure(
        &format!("similarity_{}", similarity.kind),
        &format!("Likeness of the inputs {}", similarity.kind),
        &format!("Cosine between the E[x²] of every two layers, from the first layer at the top left to the last.{of}"),
        Plot::Heat(map),
    )
}
