//! Finds the step and the offset that code a group of 32 values with the least squared error, columns counting by their importance.
//!
//! Windows of several widths and places over the range of the values are tried, judged by what remains after a least-squares fit of step
//! and offset to the codes; the best is then refined by trying its neighbours, nearer ones each round. How the pair is stored comes later.

use super::super::arch::Lanes;
use super::super::block::GROUP;
use super::importance::{Importance, OfGroup};
use super::{invert, round_code};

/// A way to code a group: `step * q + offset`.
#[derive(Clone, Copy)]
pub(super) struct Grid<V> {
    /// The distance of neighbouring values.
    pub(super) step: V,
    /// The value of code 0.
    pub(super) offset: V,
}

impl<V: Lanes> Grid<V> {
    /// By how much the offset is more than what rounding explains; below 0 if there is none.
    #[inline(always)]
    pub(super) fn offset_excess(self) -> V {
        self.offset.abs().sub(self.step.abs().mul(V::splat(NO_OFFSET)))
    }

    /// Drops the offset where `excess` is below 0. Elsewhere makes the step positive, by the mirror image of the grid: it has the same values.
    #[inline(always)]
    pub(super) fn canonical(self, excess: V) -> Self {
        let zero = V::splat(0.0);
        let mirrored = Self { step: zero.sub(self.step), offset: self.offset.sub(self.step) };
        let positive = mirrored.if_less(self.step, zero, self);
        Self { step: self.step, offset: zero }.if_less(excess, zero, positive)
    }

    /// Itself where `a < b`, the other one elsewhere.
    #[inline(always)]
    fn if_less(self, a: V, b: V, other: Self) -> Self {
        Self { step: a.select_less(b, self.step, other.step), offset: a.select_less(b, self.offset, other.offset) }
    }
}

/// What is added up over the codes of a group, each as often as its column counts.
#[derive(Clone, Copy)]
struct Sums<V> {
    code: V,
    code_sq: V,
    /// Code times value.
    product: V,
}

impl<V: Lanes> Sums<V> {
    #[inline(always)]
    fn zero() -> Self {
        let zero = V::splat(0.0);
        Self { code: zero, code_sq: zero, product: zero }
    }

    /// Codes the value of column `k` and adds it.
    #[inline(always)]
    fn with<I: Importance>(self, group: &Centred<'_, V, I>, k: usize, inverse: V, shift: V) -> Self {
        let value = group.values[k];
        let code = round_code(value.mul(inverse).add(shift));
        let weighed = group.importance.weigh(k, code);
        Self {
            code: self.code.add(weighed),
            code_sq: self.code_sq.add(weighed.mul(code)),
            product: self.product.add(weighed.mul(value)),
        }
    }
}

/// The values of a group around their mean.
struct Centred<'a, V, I> {
    values: [V; GROUP],
    importance: &'a OfGroup<'a, I>,
    /// The importance of all columns.
    total: V,
    /// 1 / `total`.
    share: V,
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
    fn new<I: Importance>(centred: &Centred<'_, V, I>, inverse: V, shift: V) -> Self {
        let (mut even, mut odd) = (Sums::zero(), Sums::zero());
        for k in (0..GROUP).step_by(2) {
            even = even.with(centred, k, inverse, shift);
            odd = odd.with(centred, k + 1, inverse, shift);
        }
        let mean_code = even.code.add(odd.code).mul(centred.share);
        let sum_sq = even.code_sq.add(odd.code_sq);
        let product = even.product.add(odd.product);
        // The spread of integers that are not all equal is at least 31/32 where all count alike.
        let least = centred.total.mul(V::splat(1.0 / 64.0));
        let spread = sum_sq.sub(mean_code.mul(mean_code).mul(centred.total)).max(least);
        let step = product.div(spread);
        Self { step, mean_code, gain: step.mul(product) }
    }

    /// Codes centred values that begin at `start` and have a range of 1 / `unit`, with so many codes cut off below and above, and fits.
    #[inline(always)]
    fn window<I: Importance>(centred: &Centred<'_, V, I>, start: V, unit: V, below: f32, above: f32) -> Self {
        let inverse = unit.mul(V::splat(15.0 + below + above));
        Self::new(centred, inverse, V::splat(-8.0 - below).sub(start.mul(inverse)))
    }

    /// The fitted grid for values around `mean`.
    #[inline(always)]
    fn grid(self, mean: V) -> Grid<V> {
        Grid { step: self.step, offset: mean.sub(self.step.mul(self.mean_code)) }
    }

    /// Keeps the better of two, itself when they are equal.
    #[inline(always)]
    fn or_better(self, other: Self) -> Self {
        Self {
            step: self.gain.select_less(other.gain, other.step, self.step),
            mean_code: self.gain.select_less(other.gain, other.mean_code, self.mean_code),
            gain: self.gain.max(other.gain),
        }
    }

    /// Codes with the fitted step and offset, and with neighbours of these `reach` moves away, and fits again.
    #[inline(always)]
    fn refined<I: Importance>(self, centred: &Centred<'_, V, I>, reach: f32) -> Self {
        let inverse = invert(self.step);
        let mut best = self.or_better(Self::new(centred, inverse, self.mean_code));
        for (stretch, shift) in MOVES {
            let inverse = inverse.mul(V::splat(1.0 + STRETCH * reach * stretch));
            let shift = self.mean_code.add(V::splat(SHIFT * reach * shift));
            best = best.or_better(Self::new(centred, inverse, shift));
        }
        best
    }
}

/// The windows over the range of the values, as the number of codes that they cut off on each side; the negative one leaves a quarter free.
///
/// Every pair of these is tried. With the refinement below they come within half a percent of the error that five times the work reaches.
const CUTS: [f32; 4] = [-0.25, 0.5, 1.5, 3.0];

/// The neighbours of a grid: narrower and wider, shifted down and up.
const MOVES: [(f32, f32); 8] =
    [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)];

/// By what part one move changes the step.
const STRETCH: f32 = 0.04;

/// By what part of a code one move shifts the grid.
const SHIFT: f32 = 0.2;

/// How far the refinement reaches for neighbours, round by round.
const REACHES: [f32; 3] = [2.0, 1.0, 0.5];

/// Offsets below this part of the step count as none.
const NO_OFFSET: f32 = 1.0 / 65536.0;

/// A grid without offset counts as this much better than it is, so that it wins when others are equal: it can be stored exactly.
const PLAIN_BONUS: f32 = 1.0 + 1.0 / 262_144.0;

/// Groups whose range is below this part of their magnitude count as constant.
const CONSTANT: f32 = 1e-6;

/// Finds a good grid for a group.
#[inline(always)]
pub(super) fn search<V: Lanes>(values: &[V; GROUP], importance: &OfGroup<'_, impl Importance>) -> Grid<V> {
    let zero = V::splat(0.0);
    let total = importance.total();
    let share = V::splat(1.0).div(total);
    let (low, high, mean) = summary(values, importance, share);
    let mut centred = Centred { values: *values, importance, total, share };
    for value in &mut centred.values {
        *value = value.sub(mean);
    }
    // Without offset, the extreme on code -8.
    let extreme = zero.sub(low).select_less(high, high, low);
    let plain_step = extreme.mul(V::splat(-1.0 / 8.0));
    let inverse = invert(plain_step);
    let mut best = Fit::new(&centred, inverse, mean.mul(inverse));
    best.gain = best.gain.mul(V::splat(PLAIN_BONUS));
    let range = high.sub(low);
    let (start, unit) = (low.sub(mean), invert(range));
    best = best.or_better(Fit::window(&centred, start, unit, 0.0, 0.0));
    for below in CUTS {
        for above in CUTS {
            best = best.or_better(Fit::window(&centred, start, unit, below, above));
        }
    }
    for reach in REACHES {
        best = best.refined(&centred, reach);
    }
    let plain = Grid { step: plain_step, offset: zero };
    let constant = extreme.abs().mul(V::splat(CONSTANT));
    best.grid(mean).if_less(constant, range, plain)
}

/// The smallest value, the largest and the mean.
#[inline(always)]
fn summary<V: Lanes>(values: &[V; GROUP], importance: &OfGroup<'_, impl Importance>, share: V) -> (V, V, V) {
    let (mut low, mut high) = (values[0], values[0]);
    let mut sum = V::splat(0.0);
    for (k, value) in values.iter().enumerate() {
        low = low.min(*value);
        high = high.max(*value);
        sum = sum.add(importance.weigh(k, *value));
    }
    (low, high, sum.mul(share))
}
