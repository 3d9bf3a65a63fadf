//! How alike the layers' inputs are: cosines between the channel energies of the groups of one kind.

use std::collections::BTreeMap;

use super::describe::spread_indices;
use super::record::{MATRIX, Similarity};
use crate::math::stats;

/// A group's layer and E\[x²].
pub type Energy<'a> = (u32, &'a [f64]);

/// The cosine of two vectors; none if one is zero or they differ in length.
pub fn cosine(a: &[f64], b: &[f64]) -> Option<f64> {
    (a.len() == b.len()).then(|| stats::cosine(a, b)).filter(|cosine| cosine.is_finite())
}

/// The matrices of all kinds with at least two layers of the same width, by kind. Zero vectors are left out.
pub fn matrices(kinds: &BTreeMap<String, Vec<Energy<'_>>>) -> Vec<Similarity> {
    kinds.iter().filter_map(|(kind, layers)| matrix(kind, layers)).collect()
}

fn matrix(kind: &str, layers: &[Energy<'_>]) -> Option<Similarity> {
    let width = layers.first()?.1.len();
    let usable: Vec<&Energy<'_>> =
        layers.iter().filter(|(_, x)| x.len() == width && x.iter().any(|&x| x > 0.0)).collect();
    if usable.len() < 2 {
        return None;
    }
    let shown: Vec<&Energy<'_>> = spread_indices(usable.len(), MATRIX).into_iter().map(|i| usable[i]).collect();
    let rounded = |a: &[f64], b: &[f64]| (stats::cosine(a, b) * 1e4).round() as f32 / 1e4;
    let row = |a: &&Energy<'_>| shown.iter().map(|b| rounded(a.1, b.1)).collect::<Vec<f32>>();
    Some(Similarity {
        kind: kind.to_string(),
        layers: shown.iter().map(|(layer, _)| *layer).collect(),
        measured_layers: usable.len() as u32,
        cosine: shown.iter().flat_map(row).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let (a, b, zero) = ([1.0, 0.0], [3.0, 4.0], [0.0, 0.0]);
        let layers: Vec<Energy<'_>> = vec![(0, &a), (1, &b), (2, &zero), (3, &a)];
        let found = matrices(&BTreeMap::from([("ffn_down".to_string(), layers)]));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].layers.as_slice(), found[0].measured_layers), ([0, 1, 3].as_slice(), 3));
        assert_eq!(found[0].cosine, [1.0, 0.6, 1.0, 0.6, 1.0, 0.6, 1.0, 0.6, 1.0]);
        assert_eq!(cosine(&a, &zero), None);
        assert_eq!(cosine(&a, &[1.0]), None);
    }

    #[test]
    fn one_layer_has_nothing_to_be_like() {
        let energy = [1.0];
        assert!(matrices(&BTreeMap::from([("x".to_string(), vec![(4, &energy[..])])])).is_empty());
    }

    #[test]
    fn many_layers_are_thinned_out() {
        let energies: Vec<Vec<f64>> = (0..300).map(|layer| vec![1.0, f64::from(layer)]).collect();
        let layers = energies.iter().enumerate().map(|(i, x)| (i as u32, x.as_slice())).collect();
        let found = matrices(&BTreeMap::from([("x".to_string(), layers)])).remove(0);
        assert_eq!((found.layers.len(), found.cosine.len(), found.measured_layers), (MATRIX, MATRIX * MATRIX, 300));
        assert_eq!((found.layers[0], found.layers[MATRIX - 1]), (0, 299));
    }
}
