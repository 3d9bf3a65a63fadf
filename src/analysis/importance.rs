//! How much each channel of an activation matters, and how unevenly.

use super::describe::{mean, short, spearman, spread_indices};
use super::record::{CHANNELS, ChannelCurves, Importance, Shares, SortedCurves};
use crate::calib::{ChannelStats, Statistics};
use crate::math::Permutation;

/// What the statistics say of a group's channels, its tensors (and experts) taken together; one value a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooled {
    /// E\[x²].
    pub mean_sq: Vec<f64>,
    /// E|x|; empty if not measured.
    pub mean_abs: Vec<f64>,
    /// E\[x]; empty if not measured.
    pub mean: Vec<f64>,
    /// max|x|; empty if not measured.
    pub abs_max: Vec<f64>,
    /// Rows behind the means: of the tensor that saw most.
    pub rows_seen: u64,
}

impl Pooled {
    /// Pools what was measured for `tensors`, weighted by the rows each saw; nothing if none saw any.
    pub fn new(statistics: &Statistics, tensors: &[String]) -> Option<Self> {
        let entries: Vec<&ChannelStats> = tensors
            .iter()
            .filter_map(|name| statistics.entries.get(name))
            .filter(|entry| entry.rows_seen() > 0)
            .collect();
        let columns = entries.first()?.columns;
        let entries: Vec<&ChannelStats> = entries.into_iter().filter(|entry| entry.columns == columns).collect();
        let total: u64 = entries.iter().map(|entry| entry.rows_seen()).sum();
        let pooled = |of: fn(&ChannelStats, usize) -> f64| {
            let one = |j| entries.iter().map(|entry| of(entry, j) * entry.rows_seen() as f64).sum::<f64>();
            (0..columns).map(|j| one(j) / total as f64).collect::<Vec<f64>>()
        };
        let complete = entries.iter().all(|entry| entry.complete);
        let if_complete = |of| if complete { pooled(of) } else { Vec::new() };
        let largest = |j| entries.iter().map(|entry| f64::from(entry.max_abs(j))).fold(0.0, f64::max);
        Some(Self {
            mean_sq: pooled(ChannelStats::mean_sq),
            mean_abs: if_complete(ChannelStats::mean_abs),
            mean: if_complete(ChannelStats::mean),
            abs_max: if complete { (0..columns).map(largest).collect() } else { Vec::new() },
            rows_seen: entries.iter().map(|entry| entry.rows_seen()).max().unwrap_or(0),
        })
    }
}

/// The indices of `values`, largest first, the lower index first among equals.
pub fn descending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    order
}

/// Which channels are important: the larger half, rounded down.
pub fn important(mean_sq: &[f64]) -> Vec<bool> {
    let mut mask = vec![false; mean_sq.len()];
    descending(mean_sq).into_iter().take(mean_sq.len() / 2).for_each(|j| mask[j] = true);
    mask
}

/// The shares of the largest values in their sum; all 0 if the sum is.
pub fn shares(values: &[f64]) -> Shares {
    let sorted: Vec<f64> = descending(values).into_iter().map(|j| values[j]).collect();
    let total: f64 = sorted.iter().sum();
    let top = |count: usize| {
        let part: f64 = sorted.iter().take(count).sum();
        if total > 0.0 { (part / total) as f32 } else { 0.0 }
    };
    let percent = |percent: usize| top((values.len() * percent / 100).max(1));
    Shares {
        top_1: top(1),
        top_10: top(10),
        top_100: top(100),
        top_1_percent: percent(1),
        top_10_percent: percent(10),
        top_50_percent: percent(50),
    }
}

/// The importance of a group's channels in brief.
pub fn importance(channels: &Pooled) -> Importance {
    let Pooled { mean_sq, mean_abs, mean: signed, abs_max, .. } = channels;
    let complete = !mean_abs.is_empty();
    let rank = |other: &[f64]| spearman(other, mean_sq).map(|rho| rho as f32);
    let offsets: Vec<f64> = signed.iter().map(|m| m.abs()).collect();
    let energy: f64 = mean_sq.iter().sum();
    let offset = signed.iter().map(|m| m * m).sum::<f64>() / energy;
    let mut sorted = mean_sq.clone();
    sorted.sort_by(f64::total_cmp);
    let median = median(&sorted);
    Importance {
        mean_abs: complete.then(|| shares(mean_abs)),
        mean_sq: shares(mean_sq),
        spearman_abs_sq: rank(mean_abs),
        spearman_max_sq: rank(abs_max),
        spearman_mean_sq: rank(&offsets),
        signed_mean: complete.then(|| mean(signed.iter().copied()) as f32),
        offset_share: (complete && energy > 0.0).then_some(offset as f32),
        rms: mean(mean_sq.iter().copied()).sqrt() as f32,
        peak_to_median: (median > 0.0).then(|| (sorted[sorted.len() - 1] / median) as f32),
        zero_channels: mean_sq.iter().filter(|&&x| x == 0.0).count() as u32,
    }
}

/// The median of sorted values; 0 if there are none.
fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        n => sorted[n / 2],
    }
}

/// The channel curves of a group: in the channels' own order, and sorted.
pub fn curves(
    channels: &Pooled,
    weight_sq: &[f64],
    scale: Option<&[f32]>,
    order: Option<&Permutation>,
) -> (ChannelCurves, SortedCurves) {
    let bucket = channels.mean_sq.len().div_ceil(CHANNELS).max(1);
    let largest = |first: usize| {
        let end = (first + bucket).min(channels.mean_sq.len());
        (first..end).fold(first, |best, j| if channels.mean_sq[j] > channels.mean_sq[best] { j } else { best })
    };
    let points: Vec<usize> = (0..channels.mean_sq.len()).step_by(bucket).map(largest).collect();
    let at = |values: &[f64]| pick(values, &points);
    let places = order.map(Permutation::inverse);
    let curves = ChannelCurves {
        bucket: bucket as u32,
        channel: points.iter().map(|&j| j as u32).collect(),
        mean_abs: at(&channels.mean_abs),
        mean_sq: at(&channels.mean_sq),
        abs_max: at(&channels.abs_max),
        mean: at(&channels.mean),
        weight_sq: at(weight_sq),
        scale: scale.map_or_else(Vec::new, |scale| points.iter().map(|&j| short(f64::from(scale[j]))).collect()),
        place: places.map_or_else(Vec::new, |places| points.iter().map(|&j| places.indices()[j]).collect()),
    };
    let ranks = spread_indices(channels.mean_sq.len(), CHANNELS / 2);
    let sorted = |values: &[f64]| {
        let order = descending(values);
        if values.is_empty() { Vec::new() } else { ranks.iter().map(|&rank| short(values[order[rank]])).collect() }
    };
    let sorted = SortedCurves {
        rank: ranks.iter().map(|&rank| rank as u32).collect(),
        mean_abs: sorted(&channels.mean_abs),
        mean_sq: sorted(&channels.mean_sq),
        abs_max: sorted(&channels.abs_max),
    };
    (curves, sorted)
}

/// The values at some indices; nothing of nothing.
fn pick(values: &[f64], at: &[usize]) -> Vec<f32> {
    if values.is_empty() { Vec::new() } else { at.iter().map(|&j| short(values[j])).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(mean_sq: Vec<f64>) -> Pooled {
        let n = mean_sq.len();
        Pooled {
            mean_abs: mean_sq.iter().map(|x| x.sqrt()).collect(),
            mean: vec![-0.5; n],
            abs_max: mean_sq.iter().map(|x| 3.0 * x.sqrt()).collect(),
            mean_sq,
            rows_seen: 7,
        }
    }

    #[test]
    fn one_spike_channel_holds_almost_everything() {
        let mut mean_sq = vec![1.0; 200];
        mean_sq[17] = 801.0;
        let found = importance(&pooled(mean_sq));
        assert!((found.mean_sq.top_1 - 0.801).abs() < 1e-6, "801 of 1000");
        assert!((found.mean_sq.top_10 - 0.81).abs() < 1e-6 && (found.mean_sq.top_100 - 0.9).abs() < 1e-6);
        assert!((found.mean_sq.top_1_percent - 0.802).abs() < 1e-6, "two channels");
        assert_eq!(found.mean_sq.top_50_percent, found.mean_sq.top_100);
        assert_eq!(found.peak_to_median, Some(801.0));
        assert_eq!(found.spearman_abs_sq, Some(1.0));
        assert_eq!(found.spearman_mean_sq, None, "the signed means are all alike");
        assert_eq!(found.signed_mean, Some(-0.5));
        assert!((found.offset_share.unwrap() - 200.0 * 0.25 / 1000.0).abs() < 1e-6);
        assert!((found.rms - 5f32.sqrt()).abs() < 1e-6);
        assert_eq!(found.zero_channels, 0);
    }

    #[test]
    fn nothing_measured_is_absent_and_zeros_do_no_harm() {
        let mut only_squares = pooled(vec![0.0; 3]);
        (only_squares.mean_abs, only_squares.mean, only_squares.abs_max) = (Vec::new(), Vec::new(), Vec::new());
        let found = importance(&only_squares);
        assert_eq!((found.mean_abs, found.spearman_abs_sq, found.signed_mean), (None, None, None));
        assert_eq!((found.mean_sq, found.peak_to_median, found.zero_channels), (Shares::default(), None, 3));
        assert_eq!(found.offset_share, None);
    }

    #[test]
    fn the_larger_half_is_important() {
        assert_eq!(important(&[1.0, 5.0, 5.0, 2.0, 0.0]), [false, true, true, false, false]);
        assert_eq!(important(&[2.0, 2.0]), [true, false]);
    }

    #[test]
    fn buckets_keep_their_largest_channel_and_places_undo_the_order() {
        let n = 3 * CHANNELS - 1;
        let channels = pooled((0..n).map(|j| f64::from((j * 7919 % n) as u32)).collect());
        let order = Permutation::new(&(0..n as i64).rev().collect::<Vec<_>>()).unwrap();
        let (curves, sorted) = super::curves(&channels, &vec![1.0; n], None, Some(&order));
        assert_eq!((curves.bucket, curves.channel.len()), (3, CHANNELS));
        for (i, &j) in curves.channel.iter().enumerate() {
            let bucket = &channels.mean_sq[3 * i..(3 * i + 3).min(n)];
            assert_eq!(channels.mean_sq[j as usize], bucket.iter().copied().fold(0.0, f64::max));
            assert_eq!(curves.mean_sq[i], short(channels.mean_sq[j as usize]));
            assert_eq!(order.indices()[curves.place[i] as usize], j);
        }
        assert!(curves.scale.is_empty());
        assert_eq!((sorted.rank[0], sorted.mean_sq[0]), (0, (n - 1) as f32));
        assert!(sorted.mean_sq.is_sorted_by(|a, b| a >= b) && sorted.mean_sq.last() == Some(&0.0));
    }
}
