//! Eight lanes as an array: the implementation that defines what the others must give.
//!
//! The compiler may vectorise it for the processor it compiles for; it may not change a bit of the result.

use super::Lanes;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(in crate::tcq) struct Scalar([f32; 8]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

impl Lanes for Scalar {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Self(std::array::from_fn(|lane| from[..8][lane]))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        let pick = |lane: usize| if self.0[lane] < bound.0[lane] { then.0[lane] } else { otherwise.0[lane] };
        Self(std::array::from_fn(pick))
    }

    #[inline(always)]
    fn swap_halves(self) -> Self {
        self
    }

    #[inline(always)]
    fn butterfly_halves(self) -> Self {
        self
    }

    #[inline(always)]
    fn load_halves(low: &[f32], _high: &[f32]) -> Self {
        Self::load(low)
    }

    #[inline(always)]
    fn store_halves(self, low: &mut [f32], _high: &mut [f32]) {
        self.store(low);
    }
}
