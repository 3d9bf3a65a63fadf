//! Makes long curves short enough to draw without losing what stands out.

/// The most points of a drawn curve.
pub const CURVE_POINTS: usize = 512;

/// Keeps at most `most` of the points of a curve: its ends, and of every stretch of neighbours the lowest and the highest, in their order.
///
/// A stretch that is thinned never loses its extremes, so outliers of single channels stay visible.
pub fn thin(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    if points.len() <= most || most < 4 {
        return points.to_vec();
    }
    let (inner, stretches) = (&points[1..points.len() - 1], (most - 2) / 2);
    let mut kept = vec![points[0]];
    for stretch in 0..stretches {
        let span = &inner[stretch * inner.len() / stretches..(stretch + 1) * inner.len() / stretches];
        kept.extend(extremes(span));
    }
    kept.push(points[points.len() - 1]);
    kept
}

/// Gives the lowest and the highest point of a stretch in the order of the curve, once where they are the same.
fn extremes(span: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + use<'_> {
    let by_value = |a: &&usize, b: &&usize| span[**a].1.total_cmp(&span[**b].1);
    let places: Vec<usize> = (0..span.len()).collect();
    let low = places.iter().min_by(by_value).copied();
    let high = places.iter().rev().max_by(by_value).copied();
    let mut ends: Vec<usize> = low.into_iter().chain(high).collect();
    ends.sort_unstable();
    ends.dedup();
    ends.into_iter().map(|place| span[place])
}

/// Gives the curve of `values` sorted from high to low over their rank, thinned to `most` points. Values that are not finite are left out.
pub fn sorted_curve(values: &[f64], most: usize) -> Vec<(f64, f64)> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let points: Vec<(f64, f64)> = sorted.into_iter().enumerate().map(|(rank, value)| (rank as f64, value)).collect();
    thin(&points, most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn short_curves_stay_as_they_are() {
        let points = [(0.0, 3.0), (1.0, 1.0), (2.0, 2.0)];
        assert_eq!(thin(&points, 3), points);
    }

    #[test]
    fn one_outlier_survives() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 0.0)).collect();
        points[4321].1 = 9.0;
        points[4322].1 = -9.0;
        let kept = thin(&points, 64);
        assert!(kept.len() <= 64);
        assert!(kept.contains(&(4321.0, 9.0)) && kept.contains(&(4322.0, -9.0)));
    }

    #[test]
    fn sorting_leaves_out_what_is_no_number() {
        assert_eq!(sorted_curve(&[1.0, f64::NAN, 3.0], 512), [(0.0, 3.0), (1.0, 1.0)]);
    }

    proptest! {
        #[test]
        fn ends_extremes_and_order_are_kept(values in prop::collection::vec(-1e3..1e3, 1..2000usize), most in 4..200usize) {
            let points: Vec<(f64, f64)> = values.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
            let kept = thin(&points, most);
            prop_assert!(kept.len() <= most);
            prop_assert_eq!((kept[0], kept[kept.len() - 1]), (points[0], points[points.len() - 1]));
            prop_assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
            let highest = |p: &[(f64, f64)]| p.iter().map(|p| p.1).fold(f64::MIN, f64::max);
            let lowest = |p: &[(f64, f64)]| p.iter().map(|p| p.1).fold(f64::MAX, f64::min);
            prop_assert_eq!((highest(&kept), lowest(&kept)), (highest(&points), lowest(&points)));
        }
    }
}
