//! Finds the step and the offset that code a group of 32 values with the least squared error.
//!
//! Windows of several widths and places over the range of the values are tried, judged by what remains after a least-squares fit of step
//! and offset to the codes; the best is then refined by coding anew and fitting anew. How the pair is stored comes later.

use super::super::arch::Lanes;
use super::super::block::GROUP;
use super::{invert, round_code};

/// A way to code a group: `step * q + offset`.
#[derive(Clone, Copy)]
pub(super) struct Grid<V> {
    /// The distance of neighbouring values.
    pub(super) step: V,
    /// The value of code 0.
    pub(super) offset: V,
}

/// The codes of a group seen through their sums.
#[derive(Clone, Copy)]
struct Fit<V> {
    /// The step that fits best.
    step: V,
    /// The mean of the codes.
    mean_code: V,
    /// By how much the fit lowers the squared error below that of the mean.
    gain: V,
}

impl<V: Lanes> Fit<V> {
    /// Codes centred values with `inverse` step and `shift`, and fits.
    #[inline(always)]
    fn new(centred: &[V; GROUP], inverse: V, shift: V) -> Self {
        let zero = V::splat(0.0);
        let (mut sum, mut sum_sq, mut product) = ([zero; 2], [zero; 2], [zero; 2]);
        for (k, value) in centred.iter().enumerate() {
            let code = round_code(value.mul(inverse).add(shift));
            sum[k % 2] = sum[k % 2].add(code);
            sum_sq[k % 2] = sum_sq[k % 2].add(code.mul(code));
            product[k % 2] = product[k % 2].add(code.mul(*value));
        }
        let mean_code = sum[0].add(sum[1]).mul(V::splat(1.0 / GROUP as f32));
        let sum_sq = sum_sq[0].add(sum_sq[1]);
        let product = product[0].add(product[1]);
        // The spread of integers that are not all equal is at least 31/32.
        let spread = sum_sq.sub(mean_code.mul(mean_code).mul(V::splat(GROUP as f32))).max(V::splat(0.5));
        let step = product.div(spread);
        Self { step, mean_code, gain: step.mul(product) }
    }

    /// Keeps the better of two, itself when they are equal.
    #[inline(always)]
    fn or_better(self, other: Self) -> Self {
        let choose = |mine: V, theirs: V| self.gain.select_less(other.gain, theirs, mine);
        Self {
            step: choose(self.step, other.step),
            mean_code: choose(self.mean_code, other.mean_code),
            gain: choose(self.gain, other.gain),
        }
    }

    /// Codes with the fitted step and offset and fits again.
    #[inline(always)]
    fn refined(self, centred: &[V; GROUP]) -> Self {
        self.or_better(Self::new(centred, invert(self.step), self.mean_code))
    }
}

/// The windows: how much of the range of the values they cover, and how much of the rest is cut off below.
const WINDOWS: [(f32, f32); 9] = [
    (1.0, 0.5),
    (0.96, 0.5),
    (0.92, 0.5),
    (0.88, 0.5),
    (0.84, 0.5),
    (0.92, 0.0),
    (0.92, 1.0),
    (0.84, 0.0),
    (0.84, 1.0),
];

/// How often the best window is coded and fitted again.
const ROUNDS: usize = 2;

/// Offsets below this part of the step count as none.
const NO_OFFSET: f32 = 1.0 / 65536.0;

/// Finds a good grid for a group.
#[inline(always)]
pub(super) fn search<V: Lanes>(values: &[V; GROUP]) -> Grid<V> {
    let (mut low, mut high) = (values[0], values[0]);
    let mut sums = [V::splat(0.0); 4];
    for (k, value) in values.iter().enumerate() {
        low = low.min(*value);
        high = high.max(*value);
        sums[k % 4] = sums[k % 4].add(*value);
    }
    let mean = sums[0].add(sums[1]).add(sums[2].add(sums[3])).mul(V::splat(1.0 / GROUP as f32));
    let mut centred = *values;
    for value in &mut centred {
        *value = value.sub(mean);
    }
    // Without offset, the extreme on code -8.
    let extreme = V::splat(0.0).sub(low).select_less(high, high, low);
    let inverse = invert(extreme.mul(V::splat(-1.0 / 8.0)));
    let mut best = Fit::new(&centred, inverse, mean.mul(inverse));
    let range = high.sub(low);
    let low = low.sub(mean);
    let unit = V::splat(15.0).mul(invert(range));
    for (width, cut_below) in WINDOWS {
        let inverse = unit.mul(V::splat(1.0 / width));
        let start = low.add(range.mul(V::splat((1.0 - width) * cut_below)));
        let shift = V::splat(-8.0).sub(start.mul(inverse));
        best = best.or_better(Fit::new(&centred, inverse, shift));
    }
    for _ in 0..ROUNDS {
        best = best.refined(&centred);
    }
    let offset = mean.sub(best.step.mul(best.mean_code));
    let negligible = best.step.abs().mul(V::splat(NO_OFFSET));
    Grid { step: best.step, offset: offset.abs().select_less(negligible, V::splat(0.0), offset) }
}
