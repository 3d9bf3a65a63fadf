//! NEON: eight lanes as two registers.
//!
//! Smaller and larger are compare-and-select, because `fmin` treats signed zeros and NaN in a way of its own.

#[allow(clippy::wildcard_imports, reason = "a page of intrinsics; clippy minds only outside of tests")]
use std::arch::aarch64::*;

use super::{Kernel, Lanes};

/// Compiles the kernel for NEON and runs it.
#[target_feature(enable = "neon")]
pub(super) fn run_neon<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Neon>()
}

/// Eight lanes in two 128-bit registers.
#[derive(Clone, Copy)]
pub(in crate::tcq) struct Neon(float32x4_t, float32x4_t);

/// Implements the operations that are one intrinsic on each register. They are safe to call where NEON is: the type is private to the
/// kernels that [`super::dispatch`] runs.
macro_rules! intrinsics {
    ($($name:ident = $call:ident;)*) => {$(
        #[inline(always)]
        fn $name(self, other: Self) -> Self {
            // SAFETY: `dispatch` found NEON before it instantiated the kernel that calls this.
            unsafe { Self($call(self.0, other.0), $call(self.1, other.1)) }
        }
    )*};
}

impl Lanes for Neon {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: `dispatch` found NEON.
        unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..Self::WIDTH];
        // SAFETY: `dispatch` found NEON; the slice holds eight values.
        unsafe { Self(vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4))) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: `dispatch` found NEON; the slice has room for eight values.
        unsafe {
            vst1q_f32(to.as_mut_ptr(), self.0);
            vst1q_f32(to.as_mut_ptr().add(4), self.1);
        }
    }

    intrinsics! {
        add = vaddq_f32;
        sub = vsubq_f32;
        mul = vmulq_f32;
        div = vdivq_f32;
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.select_less(other, self, other)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        other.select_less(self, self, other)
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: `dispatch` found NEON.
        unsafe { Self(vabsq_f32(self.0), vabsq_f32(self.1)) }
    }

    #[inline(always)]
    fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: `dispatch` found NEON.
        unsafe {
            Self(
                vbslq_f32(vcltq_f32(self.0, bound.0), then.0, otherwise.0),
                vbslq_f32(vcltq_f32(self.1, bound.1), then.1, otherwise.1),
            )
        }
    }
}
