//! AVX2 (eight lanes) and AVX-512F (sixteen lanes).
//!
//! `vminps` and `vmaxps` return their second operand when neither is smaller, as [`Lanes::min`] and [`Lanes::max`] ask for.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

/// Compiles the kernel for AVX2 and runs it.
#[target_feature(enable = "avx2")]
pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// Compiles the kernel for AVX-512F and runs it.
#[target_feature(enable = "avx512f,avx2")]
pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

/// Implements the operations that are one intrinsic each. They are safe to call where their instruction set is: the types are private to
/// the kernels that [`super::dispatch`] runs.
macro_rules! intrinsics {
    ($($name:ident($($argument:ident),*) = $call:expr;)*) => {$(
        #[inline(always)]
        fn $name($($argument: Self),*) -> Self {
            // SAFETY: `dispatch` found the instruction set before it instantiated the kernel that calls this.
            Self(unsafe { $call })
        }
    )*};
}

/// Eight lanes in a 256-bit register.
#[derive(Clone, Copy)]
pub(in crate::tcq) struct Avx2(__m256);

impl Lanes for Avx2 {
    const WIDTH: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: `dispatch` found AVX2.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..Self::WIDTH];
        // SAFETY: `dispatch` found AVX2; the slice holds eight values, and the load needs no alignment.
        Self(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: `dispatch` found AVX2; the slice has room for eight values, and the store needs no alignment.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    intrinsics! {
        add(self, other) = _mm256_add_ps(self.0, other.0);
        sub(self, other) = _mm256_sub_ps(self.0, other.0);
        mul(self, other) = _mm256_mul_ps(self.0, other.0);
        div(self, other) = _mm256_div_ps(self.0, other.0);
        min(self, other) = _mm256_min_ps(self.0, other.0);
        max(self, other) = _mm256_max_ps(self.0, other.0);
        abs(self) = _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0);
        select_less(self, bound, then, otherwise) =
            _mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0));
    }

    #[inline(always)]
    fn swap_halves(self) -> Self {
        self
    }

    #[inline(always)]
    fn butterfly_halves(self) -> Self {
        self
    }
}

/// Sixteen lanes in a 512-bit register.
#[derive(Clone, Copy)]
pub(in crate::tcq) struct Avx512(__m512);

/// The lanes 8..16 of a mask.
const HIGH_HALF: __mmask16 = 0xff00;

impl Lanes for Avx512 {
    const WIDTH: usize = 16;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: `dispatch` found AVX-512F.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let from = &from[..Self::WIDTH];
        // SAFETY: `dispatch` found AVX-512F; the slice holds sixteen values, and the load needs no alignment.
        Self(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: `dispatch` found AVX-512F; the slice has room for sixteen values, and the store needs no alignment.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    intrinsics! {
        add(self, other) = _mm512_add_ps(self.0, other.0);
        sub(self, other) = _mm512_sub_ps(self.0, other.0);
        mul(self, other) = _mm512_mul_ps(self.0, other.0);
        div(self, other) = _mm512_div_ps(self.0, other.0);
        min(self, other) = _mm512_min_ps(self.0, other.0);
        max(self, other) = _mm512_max_ps(self.0, other.0);
        abs(self) = _mm512_abs_ps(self.0);
        select_less(self, bound, then, otherwise) =
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0), otherwise.0, then.0);
        swap_halves(self) = _mm512_shuffle_f32x4::<0b01_00_11_10>(self.0, self.0);
    }

    #[inline(always)]
    fn butterfly_halves(self) -> Self {
        let swapped = self.swap_halves();
        // SAFETY: `dispatch` found AVX-512F.
        Self(unsafe { _mm512_mask_sub_ps(_mm512_add_ps(self.0, swapped.0), HIGH_HALF, swapped.0, self.0) })
    }
}
