//! Eight lanes as an array: the implementation that defines what the others must give.
//!
//! The compiler may vectorise it for the processor it compiles for; it may not change a bit of the result.

use super::Lanes;

/// Eight lanes.
#[derive(Clone, Copy)]
pub(in crate::tcq) struct Scalar([f32; 8]);

/// Implements an operation lane by lane.
macro_rules! lane_by_lane {
    ($($name:ident($a:ident, $b:ident) = $value:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, other: Self) -> Self {
            let mut lanes = [0.0; 8];
            for lane in 0..8 {
                let ($a, $b) = (self.0[lane], other.0[lane]);
                lanes[lane] = $value;
            }
            Self(lanes)
        }
    )*};
}

impl Lanes for Scalar {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let mut lanes = [0.0; 8];
        lanes.copy_from_slice(&from[..8]);
        Self(lanes)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self.0);
    }

    lane_by_lane! {
        add(a, b) = a + b;
        sub(a, b) = a - b;
        mul(a, b) = a * b;
        div(a, b) = a / b;
        min(a, b) = if a < b { a } else { b };
        max(a, b) = if a > b { a } else { b };
    }

    #[inline(always)]
    fn abs(self) -> Self {
        let mut lanes = self.0;
        for lane in &mut lanes {
            *lane = lane.abs();
        }
        Self(lanes)
    }

    #[inline(always)]
    fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        let mut lanes = otherwise.0;
        for (lane, chosen) in lanes.iter_mut().enumerate() {
            if self.0[lane] < bound.0[lane] {
                *chosen = then.0[lane];
            }
        }
        Self(lanes)
    }
}
