//! What every kernel has to give, computed plainly on the CPU. Encoding and decoding are those of [`crate::tcq::Codec`] and are not repeated here.

use super::shapes::{
    Act4, Act8, Activations, Block4, Block8, BlockFork, BlockG256, Int4Fork, Int4G32, Int4G256, Int8, Rule, WideFork,
    WideG256,
};
use crate::math::hadamard::fwht256;
use crate::tcq::{CHUNK, GROUP, GROUPS, Tile};

/// Below this a group counts as zero.
const TINY: f32 = 1e-10;

/// The codes of 256 channels in their order, and what they are multiplied with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounded {
    pub(super) codes: [i8; CHUNK],
    pub(super) scale: [f32; GROUPS],
}

impl Rounded {
    fn group(&self, group: usize) -> &[i8] {
        &self.codes[GROUP * group..GROUP * (group + 1)]
    }

    fn sum(&self, group: usize) -> i32 {
        self.group(group).iter().map(|&code| i32::from(code)).sum()
    }
}

/// How scales are found.
#[derive(Debug, Clone, Copy)]
enum Scale {
    /// The largest magnitude gets this code.
    Largest(f32),
    /// The value of largest magnitude gets -8 over this.
    Extreme(f32),
}

fn clamp(x: f32, low: f32, high: f32) -> f32 {
    // NaN becomes the lower end, unlike with `f32::clamp`.
    if x > low { x.min(high) } else { low }
}

/// Rounds rotated values that share a scale; gives the scale, NaN where there is no finite maximum.
fn round(values: &[f32], scale: Scale, codes: &mut [i8]) -> f32 {
    let largest = f32::from_bits(values.iter().fold(0, |max, value| max.max(value.abs().to_bits())));
    let (step, inverse, low, high) = match scale {
        Scale::Largest(top) => {
            let max = if largest < TINY { 1.0 } else { largest };
            (max / top, top / max, -top, top)
        }
        Scale::Extreme(clip) => {
            let extreme = values.iter().copied().find(|value| value.abs() == largest).unwrap_or(f32::NAN);
            let step = if largest < TINY { 1.0 } else { extreme * clip * -0.125 };
            (step, 1.0 / step, -8.0, 7.0)
        }
    };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = clamp(value * inverse, low, high).round_ties_even() as i8;
    }
    if largest <= f32::MAX { step } else { f32::NAN }
}

/// Rounds 256 channels in groups of `span`.
fn rounded(channels: &[f32; CHUNK], scale: Scale, span: usize) -> Rounded {
    let mut values = *channels;
    fwht256(&mut values);
    let mut rounded = Rounded { codes: [0; CHUNK], scale: [0.0; GROUPS] };
    for (at, part) in values.chunks(span).enumerate() {
        let own = span * at..span * (at + 1);
        let scale = round(part, scale, &mut rounded.codes[own.clone()]);
        rounded.scale[own.start / GROUP..own.end / GROUP].fill(scale);
    }
    rounded
}

/// Rounded activations that can be taken apart and put together.
pub(super) trait Layout: Activations + PartialEq + std::fmt::Debug {
    fn lay(rounded: &Rounded) -> Self;
    fn unlay(&self) -> Rounded;
    /// Itself with one NaN for all, for which NaN the hardware makes is its own affair.
    fn canonical(self) -> Self;
}

/// The place of a code among those with even and odd ones apart.
fn apart(i: usize) -> usize {
    let (eight, within) = (i / 8, i % 8);
    8 * eight + 4 * (within % 2) + within / 2
}

fn nibbles(codes: &[i8; CHUNK]) -> [u8; CHUNK / 2] {
    std::array::from_fn(|i| (codes[2 * i] as u8 & 15) | (codes[2 * i + 1] as u8 & 15) << 4)
}

fn from_nibbles(bytes: &[u8; CHUNK / 2]) -> [i8; CHUNK] {
    std::array::from_fn(|i| (if i % 2 == 0 { bytes[i / 2] << 4 } else { bytes[i / 2] }) as i8 >> 4)
}

fn set_apart(codes: &[i8; CHUNK]) -> [i8; CHUNK] {
    let mut to = [0; CHUNK];
    (0..CHUNK).for_each(|i| to[apart(i)] = codes[i]);
    to
}

fn put_together(codes: &[i8; CHUNK]) -> [i8; CHUNK] {
    std::array::from_fn(|i| codes[apart(i)])
}

fn one_nan(value: f32) -> f32 {
    if value.is_nan() { f32::NAN } else { value }
}

fn sums(rounded: &Rounded) -> [f32; GROUPS] {
    std::array::from_fn(|group| rounded.scale[group] * rounded.sum(group) as f32)
}

fn integer_sums(rounded: &Rounded) -> [i16; GROUPS] {
    std::array::from_fn(|group| rounded.sum(group) as i16)
}

macro_rules! layout {
    ($acts:ident, groups, $put:expr, $take:expr) => {
        impl Layout for $acts {
            fn lay(rounded: &Rounded) -> Self {
                Self { codes: $put(&rounded.codes), scale: rounded.scale, sum: sums(rounded) }
            }

            fn unlay(&self) -> Rounded {
                Rounded { codes: $take(&self.codes), scale: self.scale }
            }

            fn canonical(self) -> Self {
                Self { scale: self.scale.map(one_nan), sum: self.sum.map(one_nan), ..self }
            }
        }
    };
    ($acts:ident, chunk, $put:expr, $take:expr) => {
        impl Layout for $acts {
            fn lay(rounded: &Rounded) -> Self {
                let (scale, sums) = (rounded.scale[0], integer_sums(rounded));
                Self { codes: $put(&rounded.codes), scale, sums, rest: [0; 3] }
            }

            fn unlay(&self) -> Rounded {
                Rounded { codes: $take(&self.codes), scale: [self.scale; GROUPS] }
            }

            fn canonical(self) -> Self {
                Self { scale: one_nan(self.scale), ..self }
            }
        }
    };
}

layout!(Act8, groups, set_apart, put_together);
layout!(Act4, groups, nibbles, from_nibbles);
layout!(Block4, chunk, nibbles, from_nibbles);
layout!(Block8, chunk, set_apart, put_together);

/// A rule with its reference.
pub(super) trait Reference: Rule<Acts: Layout> {
    /// Transforms and rounds 256 channels.
    fn reference(channels: &[f32; CHUNK]) -> Rounded;
}

macro_rules! reference {
    ($($rule:ident: $scale:expr, $span:expr;)*) => {$(
        impl Reference for $rule {
            fn reference(channels: &[f32; CHUNK]) -> Rounded {
                rounded(channels, $scale, $span)
            }
        }
    )*};
}

reference! {
    Int8: Scale::Largest(127.0), GROUP;
    Int4G32: Scale::Extreme(1.0), GROUP;
    Int4G256: Scale::Extreme(0.9), CHUNK;
    Int4Fork: Scale::Largest(7.0), CHUNK;
    BlockG256: Scale::Extreme(0.9), CHUNK;
    BlockFork: Scale::Largest(7.0), CHUNK;
    WideG256: Scale::Extreme(0.9), CHUNK;
    WideFork: Scale::Largest(7.0), CHUNK;
}

/// The channels of tokens, gathered.
pub(super) fn gathered<T: Copy>(x: &[T], perm: Option<&[i32]>, k: usize) -> Vec<T> {
    match perm {
        None => x.to_vec(),
        Some(perm) => x.chunks_exact(k).flat_map(|row| perm.iter().map(|&from| row[from as usize])).collect(),
    }
}

/// Rounds tokens whose channels are in order.
pub(super) fn acts<R: Reference>(x: &[f32]) -> Vec<R::Acts> {
    x.as_chunks::<CHUNK>().0.iter().map(|chunk| R::Acts::lay(&R::reference(chunk))).collect()
}

/// A product in f64, and the sum of the magnitudes of its terms, which errors of rounding are judged by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Product {
    pub(super) value: f64,
    pub(super) magnitude: f64,
}

/// Row `row` of a matrix times one token.
pub(super) fn product<A: Layout>(tiles: &[Tile], chunks: usize, row: usize, token: &[A]) -> Product {
    let mut product = Product::default();
    for (tile, acts) in tiles[row / 8 * chunks..][..chunks].iter().zip(token) {
        let rounded = acts.unlay();
        for group in 0..GROUPS {
            let dot: i32 = (0..GROUP)
                .map(|k| {
                    let column = GROUP * group + k;
                    i32::from(tile.code(row % 8, column)) * i32::from(rounded.codes[column])
                })
                .sum();
            let scale = f64::from(rounded.scale[group]);
            let scaled = f64::from(tile.step(row % 8, group)) * f64::from(dot) * scale;
            let shifted = f64::from(tile.offset(row % 8, group)) * f64::from(rounded.sum(group)) * scale;
            product.value += scaled + shifted;
            product.magnitude += scaled.abs() + shifted.abs();
        }
    }
    product
}

/// The order of smoothing: channels by falling maximum, equal ones as they lie; and the scale of each channel.
pub(super) fn smooth(max: &[f32]) -> (Vec<i32>, Vec<f32>) {
    const RUN: usize = 128;
    const FLOOR: f32 = 1e-5;
    let mut order: Vec<i32> = (0..max.len() as i32).collect();
    order.sort_by(|&a, &b| max[b as usize].total_cmp(&max[a as usize]));
    let mut scales = vec![0.0; max.len()];
    for run in order.chunks(RUN) {
        let largest = max[run[0] as usize].max(FLOOR);
        for &channel in run {
            scales[channel as usize] = largest;
        }
    }
    (order, scales)
}

/// Divides a token by its scales and rounds it: codes, the scale of the token, and what the codes stand for.
pub(super) fn smooth_round(row: &[f32], scales: &[f32]) -> (Vec<i8>, f32, Vec<f32>) {
    let smoothed: Vec<f32> = row.iter().zip(scales).map(|(value, scale)| value / scale).collect();
    let largest = smoothed.iter().fold(0.0, |max: f32, value| max.max(value.abs()));
    let scale = if largest == 0.0 { 1.0 } else { largest / 7.0 };
    let code = |value: &f32| clamp(value / scale, -8.0, 7.0).round_ties_even();
    let codes: Vec<f32> = smoothed.iter().map(code).collect();
    let values = codes.iter().zip(scales).map(|(code, own)| own * scale * code).collect();
    (codes.iter().map(|&code| code as i8).collect(), scale, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;
    use half::f16;

    fn wave() -> [f32; CHUNK] {
        std::array::from_fn(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0)
    }

    #[test]
    fn layouts_can_be_taken_apart() {
        fn check<R: Reference>() {
            let rounded = R::reference(&wave());
            let back = R::Acts::lay(&rounded).unlay();
            assert_eq!((back.codes, back.scale), (rounded.codes, rounded.scale), "{}", R::NAME);
        }
        check::<Int8>();
        check::<Int4G32>();
        check::<Int4G256>();
        check::<Int4Fork>();
        check::<BlockG256>();
        check::<BlockFork>();
        check::<WideG256>();
        check::<WideFork>();
    }

    #[test]
    fn even_and_odd_codes_lie_in_separate_words() {
        let codes: [i8; CHUNK] = std::array::from_fn(|i| (i % 100) as i8);
        let laid = set_apart(&codes);
        assert_eq!(laid[..8], [0, 2, 4, 6, 1, 3, 5, 7]);
        assert_eq!(laid[32..40], [32, 34, 36, 38, 33, 35, 37, 39]);
    }

    #[test]
    fn an_impulse_is_rounded_as_by_hand() {
        // The transform of 16 at place 0 is 1 everywhere: the scale is 1/127 with code 127, or -1/8 with code -8.
        let mut impulse = [0.0; CHUNK];
        impulse[0] = 16.0;
        let int8 = Int8::reference(&impulse);
        assert!(int8.codes.iter().all(|&code| code == 127) && int8.scale == [1.0 / 127.0; GROUPS]);
        let int4 = Int4G32::reference(&impulse);
        assert!(int4.codes.iter().all(|&code| code == -8) && int4.scale == [-0.125; GROUPS]);
        let fork = Int4Fork::reference(&impulse);
        assert!(fork.codes.iter().all(|&code| code == 7) && fork.scale == [1.0 / 7.0; GROUPS]);
        let zero = Int8::reference(&[0.0; CHUNK]);
        assert!(zero.codes.iter().all(|&code| code == 0) && zero.scale == [1.0 / 127.0; GROUPS]);
        impulse[3] = f32::NAN;
        assert!(Int4G256::reference(&impulse).scale.iter().all(|scale| scale.is_nan()));
    }

    #[test]
    fn a_product_is_that_of_the_decoded_values() {
        let mut tile = Tile::zeroed();
        tile.scale[2] = f16::from_f32(127.0);
        tile.zero[2] = f16::from_f32(127.0);
        tile.scale_code[2] = [1; GROUPS];
        tile.zero_code[2] = [2; GROUPS];
        tile.set_code(2, 40, -3); // -3 + 2 there, 2 everywhere else
        let rounded = Rounded { codes: std::array::from_fn(|i| i8::from(i == 40 || i == 41)), scale: [0.5; GROUPS] };
        let found = product(&[tile], 1, 2, &[Act8::lay(&rounded)]);
        assert_eq!(found, Product { value: 0.5 * (-1.0 + 2.0), magnitude: 0.5 * (3.0 + 4.0) });
    }

    #[test]
    fn smoothing_takes_the_largest_of_a_run() {
        let max: Vec<f32> = (0..256).map(|i| if i == 200 { 9.0 } else { (i % 3) as f32 }).collect();
        let (order, scales) = smooth(&max);
        assert_eq!(order[..3], [200, 2, 5]);
        assert_eq!((scales[200], scales[2]), (9.0, 9.0));
        assert_eq!((order[128], scales[order[255] as usize]), (order[128], max[order[128] as usize].max(1e-5)));
        let (codes, scale, values) = smooth_round(&[7.0, -3.5, 0.0], &[1.0, 1.0, 1.0]);
        assert_eq!((codes, scale, values), (vec![7, -4, 0], 1.0, vec![7.0, -4.0, 0.0]));
    }
}
