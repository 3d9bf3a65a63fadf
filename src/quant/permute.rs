//! Orders of channels: pure functions of a few numbers per channel.
//!
//! The rotation spreads what lies in one chunk of 256 channels over the whole chunk, so an order matters through the chunk a channel falls in,
//! hardly through its place inside. Every order is stable (ties keep the original order) and deterministic.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::math::Permutation;
use crate::tcq::CHUNK;

/// How channels are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As they are.
    None,
    /// By largest magnitude, descending, over all channels.
    Rrs,
    /// By largest magnitude, descending, inside each chunk.
    RrsBlock,
    /// Dealt out over the chunks in a snake, by their contribution to the output.
    Zigzag,
    /// Placed one after the other, the most important first, where they add least to the expected error.
    Balanced,
}

impl Order {
    /// Every order, simplest first; where two are about equally good the first is taken.
    pub const ALL: [Order; 5] = [Order::None, Order::RrsBlock, Order::Zigzag, Order::Balanced, Order::Rrs];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Order::None => "none",
            Order::Rrs => "rrs",
            Order::RrsBlock => "rrs-block",
            Order::Zigzag => "zigzag",
            Order::Balanced => "balanced",
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Order::ALL.into_iter().find(|order| order.name() == text);
        found.ok_or_else(|| format!("`{text}` is not an order: none, rrs, rrs-block, zigzag, balanced"))
    }
}

/// What an order may look at: one number per channel in each field, all of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Channels {
    /// Largest magnitude of the activation.
    pub abs_max: Vec<f64>,
    /// Mean square of the activation, `E[x²]`.
    pub mean_sq: Vec<f64>,
    /// Sum of squares of the weights that read it, ‖w‖².
    pub weight_sq: Vec<f64>,
}

impl Channels {
    /// The number of channels.
    pub fn len(&self) -> usize {
        self.mean_sq.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.mean_sq.is_empty()
    }

    /// What these numbers become when the activation is multiplied by `scale` and the weights are divided by it.
    #[must_use]
    pub fn scaled(&self, scale: &[f32]) -> Self {
        let times =
            |values: &[f64], power: i32| values.iter().zip(scale).map(|(v, &a)| v * f64::from(a).powi(power)).collect();
        Self {
            abs_max: times(&self.abs_max, 1),
            mean_sq: times(&self.mean_sq, 2),
            weight_sq: times(&self.weight_sq, -2),
        }
    }

    /// The channels of `span`, as a set of their own.
    #[must_use]
    pub fn slice(&self, span: std::ops::Range<usize>) -> Self {
        let part = |values: &[f64]| values[span.clone()].to_vec();
        Self { abs_max: part(&self.abs_max), mean_sq: part(&self.mean_sq), weight_sq: part(&self.weight_sq) }
    }

    /// The contribution r = sqrt(`E[x²]`·‖w‖²) of each channel to the output (the channel scale does not change it).
    pub fn contribution(&self) -> Vec<f64> {
        self.mean_sq.iter().zip(&self.weight_sq).map(|(x, w)| (x * w).sqrt()).collect()
    }
}

/// Orders `channels`; nothing if they stay as they are. The dealing orders need whole chunks, and keep what is not a multiple of 256 long.
pub fn permutation(order: Order, channels: &Channels) -> Option<Permutation> {
    let whole = channels.len().is_multiple_of(CHUNK) && channels.len() > CHUNK;
    let indices = match order {
        Order::Rrs => descending(&channels.abs_max),
        Order::RrsBlock => by_blocks(&channels.abs_max),
        Order::Zigzag if whole => zigzag(&channels.contribution()),
        Order::Balanced if whole => balanced(channels),
        Order::None | Order::Zigzag | Order::Balanced => return None,
    };
    checked(&indices)
}

/// As [`permutation`], but channels stay inside their span of `span` channels: what can be folded into the value rows of a head.
///
/// # Panics
/// If the number of channels is no multiple of `span`.
pub fn permutation_in_spans(order: Order, channels: &Channels, span: usize) -> Option<Permutation> {
    assert!(span > 0 && channels.len().is_multiple_of(span));
    let mut indices = Vec::with_capacity(channels.len());
    for first in (0..channels.len()).step_by(span) {
        let part =
            permutation(order, &channels.slice(first..first + span)).unwrap_or_else(|| Permutation::identity(span));
        indices.extend(part.indices().iter().map(|&index| first + index as usize));
    }
    checked(&indices)
}

/// Makes a permutation of indices that are one by construction; nothing if it changes nothing.
fn checked(indices: &[usize]) -> Option<Permutation> {
    let indices: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
    Permutation::new(&indices).ok().filter(|permutation| !permutation.is_identity())
}

/// All indices by value, largest first; equal values keep their order, NaN comes first.
fn descending(values: &[f64]) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    indices.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    indices
}

/// As [`descending`], inside each chunk; a last, shorter chunk too.
fn by_blocks(values: &[f64]) -> Vec<usize> {
    let blocks = values.chunks(CHUNK).enumerate();
    blocks.flat_map(|(block, values)| descending(values).into_iter().map(move |index| block * CHUNK + index)).collect()
}

/// Deals the channels out like cards, largest first, forwards and backwards over the chunks; inside a chunk they keep their order.
fn zigzag(values: &[f64]) -> Vec<usize> {
    let chunks = values.len() / CHUNK;
    let mut dealt = vec![Vec::with_capacity(CHUNK); chunks];
    for (position, index) in descending(values).into_iter().enumerate() {
        let (round, seat) = (position / chunks, position % chunks);
        dealt[if round % 2 == 0 { seat } else { chunks - 1 - seat }].push(index);
    }
    collect(dealt)
}

/// Places the channels, largest contribution first, each in the chunk (with room left) where it adds least to Σ (Σ `E[x²]`)·(Σ ‖w‖²) over the
/// chunks: after a rotation both the rounding error of a chunk's weights and that of its activations are proportional to these products.
fn balanced(channels: &Channels) -> Vec<usize> {
    let chunks = channels.len() / CHUNK;
    let mut dealt = vec![Vec::with_capacity(CHUNK); chunks];
    let mut sums = vec![(0.0f64, 0.0f64); chunks];
    for index in descending(&channels.contribution()) {
        let (x, w) = (channels.mean_sq[index], channels.weight_sq[index]);
        let mut best: Option<(f64, usize)> = None;
        for (chunk, &(sum_x, sum_w)) in sums.iter().enumerate() {
            let added = sum_x * w + sum_w * x;
            if dealt[chunk].len() < CHUNK && best.is_none_or(|(least, _)| added < least) {
                best = Some((added, chunk));
            }
        }
        // There is room for every channel, so there is always a best chunk; NaN costs compare as not less.
        let chunk = best.map_or_else(|| dealt.iter().position(|d| d.len() < CHUNK).unwrap_or(0), |(_, chunk)| chunk);
        dealt[chunk].push(index);
        sums[chunk].0 += x;
        sums[chunk].1 += w;
    }
    collect(dealt)
}

/// Puts the chunks one behind the other, each in ascending order of its channels.
fn collect(dealt: Vec<Vec<usize>>) -> Vec<usize> {
    let sorted = dealt.into_iter().map(|mut chunk| {
        chunk.sort_unstable();
        chunk
    });
    sorted.flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channels(x: Vec<f64>, w: Vec<f64>) -> Channels {
        Channels { abs_max: x.iter().map(|v| v.sqrt()).collect(), mean_sq: x, weight_sq: w }
    }

    /// Σ over the chunks of (Σ `E[x²]`)·(Σ ‖w‖²), in the order of `permutation`.
    fn cost(channels: &Channels, permutation: Option<&Permutation>) -> f64 {
        let identity = Permutation::identity(channels.len());
        let order = permutation.unwrap_or(&identity).indices();
        let sum = |values: &[f64], chunk: &[u32]| chunk.iter().map(|&i| values[i as usize]).sum::<f64>();
        order.chunks(CHUNK).map(|chunk| sum(&channels.mean_sq, chunk) * sum(&channels.weight_sq, chunk)).sum()
    }

    #[test]
    fn rrs_sorts_stably() {
        let given = channels(vec![1.0, 9.0, 1.0, 4.0], vec![1.0; 4]);
        assert_eq!(permutation(Order::Rrs, &given).unwrap().indices(), [1, 3, 0, 2]);
        assert_eq!(permutation(Order::None, &given), None);
        assert_eq!(permutation(Order::Rrs, &channels(vec![2.0; 4], vec![1.0; 4])), None, "ties keep their order");
    }

    #[test]
    fn rrs_block_stays_inside_chunks_and_sorts_the_last_partial_one() {
        let x: Vec<f64> = (0..300).map(f64::from).collect();
        let order = permutation(Order::RrsBlock, &channels(x, vec![1.0; 300])).unwrap();
        assert_eq!(
            (order.indices()[0], order.indices()[255], order.indices()[256], order.indices()[299]),
            (255, 0, 299, 256)
        );
    }

    #[test]
    fn zigzag_deals_in_a_snake() {
        let mut x = vec![1.0; 768];
        for (rank, at) in [700, 3, 400, 20, 5, 600].into_iter().enumerate() {
            x[at] = 100.0 - rank as f64;
        }
        let order = permutation(Order::Zigzag, &channels(x, vec![1.0; 768])).unwrap();
        let chunk_of = |channel: u32| order.indices().iter().position(|&i| i == channel).unwrap() / CHUNK;
        assert_eq!([700, 3, 400, 20, 5, 600].map(chunk_of), [0, 1, 2, 2, 1, 0]);
    }

    #[test]
    fn one_chunk_or_a_part_of_one_is_left_alone() {
        for len in [256, 255, 576] {
            let given = channels((0..len).map(f64::from).collect(), vec![1.0; len as usize]);
            assert_eq!(permutation(Order::Zigzag, &given), None);
            assert_eq!(permutation(Order::Balanced, &given), None);
        }
    }

    #[test]
    fn spans_are_respected() {
        let x: Vec<f64> = (0..8).map(f64::from).collect();
        let order = permutation_in_spans(Order::Rrs, &channels(x, vec![1.0; 8]), 4).unwrap();
        assert_eq!(order.indices(), [3, 2, 1, 0, 7, 6, 5, 4]);
    }

    proptest! {
        #[test]
        fn balancing_lowers_the_expected_error(seed in any::<u64>(), chunks in 2usize..5) {
            let mut state = seed;
            let mut next = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f64 / f64::from(1 << 24) * 6.0 - 3.0).exp()
            };
            let len = chunks * CHUNK;
            let given = channels((0..len).map(|_| next()).collect(), (0..len).map(|_| next()).collect());
            let none = cost(&given, None);
            for order in [Order::Zigzag, Order::Balanced] {
                let found = permutation(order, &given).unwrap();
                prop_assert_eq!(found.len(), len);
                if order == Order::Balanced {
                    prop_assert!(cost(&given, Some(&found)) <= none);
                }
            }
            // The scale that makes both factors equal leaves only the contributions to be spread: there both orders must be near the least.
            let scale: Vec<f32> = given.mean_sq.iter().zip(&given.weight_sq).map(|(x, w)| (w / x).powf(0.25) as f32).collect();
            let even = given.scaled(&scale);
            let least = even.contribution().iter().sum::<f64>().powi(2) / chunks as f64;
            for order in [Order::Zigzag, Order::Balanced] {
                prop_assert!(cost(&even, permutation(order, &even).as_ref()) < 1.02 * least);
            }
        }
    }
}
