//! AVX2 (eight lanes) and AVX-512F (sixteen lanes).
//!
//! `vminps` and `vmaxps` return their second operand when neither is smaller, as [`Lanes::min`] and [`Lanes::max`] ask for.

#[allow(clippy::wildcard_imports, reason = "a page of intrinsics; clippy minds only outside of tests")]
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
    fn transpose(v: [Self; 8]) -> [Self; 8] {
        let ([a, b, c, d], [e, f, g, h]) =
            (Self::quarters(v[0], v[1], v[2], v[3]), Self::quarters(v[4], v[5], v[6], v[7]));
        [
            a.low_quarters(e),
            b.low_quarters(f),
            c.low_quarters(g),
            d.low_quarters(h),
            a.high_quarters(e),
            b.high_quarters(f),
            c.high_quarters(g),
            d.high_quarters(h),
        ]
    }
}

impl Avx2 {
    /// Transposes four vectors within their 128-bit quarters: the first steps of a transposition of eight.
    #[inline(always)]
    fn quarters(a: Self, b: Self, c: Self, d: Self) -> [Self; 4] {
        // SAFETY: `dispatch` found AVX2.
        unsafe {
            let (low_ab, high_ab) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
            let (low_cd, high_cd) = (_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
            [
                Self(_mm256_shuffle_ps::<0b01_00_01_00>(low_ab, low_cd)),
                Self(_mm256_shuffle_ps::<0b11_10_11_10>(low_ab, low_cd)),
                Self(_mm256_shuffle_ps::<0b01_00_01_00>(high_ab, high_cd)),
                Self(_mm256_shuffle_ps::<0b11_10_11_10>(high_ab, high_cd)),
            ]
        }
    }

    intrinsics! {
        low_quarters(self, other) = _mm256_permute2f128_ps::<0x20>(self.0, other.0);
        high_quarters(self, other) = _mm256_permute2f128_ps::<0x31>(self.0, other.0);
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

    #[inline(always)]
    fn load_halves(low: &[f32], high: &[f32]) -> Self {
        let (low, high) = (&low[..8], &high[..8]);
        // SAFETY: `dispatch` found AVX-512F; the slices hold eight values each, and the loads need no alignment.
        unsafe {
            let (low, high) = (_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr()));
            let both = _mm512_insertf64x4::<1>(_mm512_castps_pd(_mm512_castps256_ps512(low)), _mm256_castps_pd(high));
            Self(_mm512_castpd_ps(both))
        }
    }

    #[inline(always)]
    fn store_halves(self, low: &mut [f32], high: &mut [f32]) {
        let (low, high) = (&mut low[..8], &mut high[..8]);
        // SAFETY: `dispatch` found AVX-512F; the slices have room for eight values each, and the stores need no alignment.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), _mm512_castps512_ps256(self.0));
            _mm256_storeu_ps(
                high.as_mut_ptr(),
                _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0))),
            );
        }
    }

    #[inline(always)]
    fn transpose(v: [Self; 8]) -> [Self; 8] {
        let ([a, b, c, d], [e, f, g, h]) =
            (Self::quarters(v[0], v[1], v[2], v[3]), Self::quarters(v[4], v[5], v[6], v[7]));
        [
            a.even_quarters(e),
            b.even_quarters(f),
            c.even_quarters(g),
            d.even_quarters(h),
            a.odd_quarters(e),
            b.odd_quarters(f),
            c.odd_quarters(g),
            d.odd_quarters(h),
        ]
    }
}

impl Avx512 {
    /// Transposes four vectors within their 128-bit quarters: the first steps of a transposition of eight.
    #[inline(always)]
    fn quarters(a: Self, b: Self, c: Self, d: Self) -> [Self; 4] {
        // SAFETY: `dispatch` found AVX-512F.
        unsafe {
            let (low_ab, high_ab) = (_mm512_unpacklo_ps(a.0, b.0), _mm512_unpackhi_ps(a.0, b.0));
            let (low_cd, high_cd) = (_mm512_unpacklo_ps(c.0, d.0), _mm512_unpackhi_ps(c.0, d.0));
            [
                Self(_mm512_shuffle_ps::<0b01_00_01_00>(low_ab, low_cd)),
                Self(_mm512_shuffle_ps::<0b11_10_11_10>(low_ab, low_cd)),
                Self(_mm512_shuffle_ps::<0b01_00_01_00>(high_ab, high_cd)),
                Self(_mm512_shuffle_ps::<0b11_10_11_10>(high_ab, high_cd)),
            ]
        }
    }

    intrinsics! {
        even_quarters(self, other) =
            _mm512_permutex2var_ps(self.0, _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27), other.0);
        odd_quarters(self, other) =
            _mm512_permutex2var_ps(self.0, _mm512_setr_epi32(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31), other.0);
    }
}
