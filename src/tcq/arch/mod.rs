//! The kernels' view of a processor: a few operations on vectors of lanes, and the dispatch that picks an implementation.
//!
//! A lane never meets another one of a different row, and no implementation fuses or reorders operations: whatever is written over
//! [`Lanes`] gives the same bits on each of them. Only the two operations on halves know that sixteen lanes are two groups of eight rows.

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::isa::Isa;

/// A vector of f32 lanes: eight (the rows of a tile), or sixteen (the rows for two groups).
///
/// Implementations for an instruction set call its intrinsics without asking: they are only ever instantiated by [`dispatch`].
pub(super) trait Lanes: Copy {
    /// The number of lanes.
    const WIDTH: usize;

    /// Sets every lane to `value`.
    fn splat(value: f32) -> Self;
    /// Reads the first `WIDTH` values. Panics if there are fewer.
    fn load(from: &[f32]) -> Self;
    /// Writes the first `WIDTH` values. Panics if there is room for fewer.
    fn store(self, to: &mut [f32]);
    /// Adds.
    fn add(self, other: Self) -> Self;
    /// Subtracts.
    fn sub(self, other: Self) -> Self;
    /// Multiplies.
    fn mul(self, other: Self) -> Self;
    /// Divides.
    fn div(self, other: Self) -> Self;
    /// Takes the smaller: `if self < other { self } else { other }`.
    fn min(self, other: Self) -> Self;
    /// Takes the larger: `if self > other { self } else { other }`.
    fn max(self, other: Self) -> Self;
    /// Drops the sign.
    fn abs(self) -> Self;
    /// Chooses lane by lane: `if self < bound { then } else { otherwise }`.
    fn select_less(self, bound: Self, then: Self, otherwise: Self) -> Self;
    /// Exchanges the two halves of sixteen lanes; does nothing to eight.
    #[inline(always)]
    fn swap_halves(self) -> Self {
        self
    }
    /// Turns the two halves of sixteen lanes into their sum and their difference; does nothing to eight.
    #[inline(always)]
    fn butterfly_halves(self) -> Self {
        self
    }
    /// Reads eight values of `low`, and for sixteen lanes as many of `high`. Panics if there are fewer.
    #[inline(always)]
    fn load_halves(low: &[f32], _high: &[f32]) -> Self {
        Self::load(low)
    }
    /// Writes eight lanes to `low`, and if there are sixteen the others to `high`. Panics if there is room for fewer.
    #[inline(always)]
    fn store_halves(self, low: &mut [f32], _high: &mut [f32]) {
        self.store(low);
    }

    /// Transposes eight lanes of eight vectors, each half by itself: afterwards lane `i` of vector `j` is what lane `j` of vector `i` was.
    #[inline(always)]
    fn transpose(vectors: [Self; 8]) -> [Self; 8] {
        let mut lanes = [[0.0; 16]; 8];
        for (lanes, vector) in lanes.iter_mut().zip(vectors) {
            vector.store(lanes);
        }
        let mut transposed = vectors;
        for (j, vector) in transposed.iter_mut().enumerate() {
            let column: [f32; 16] = std::array::from_fn(|lane| lanes[lane % 8][j + lane / 8 * 8]);
            *vector = Self::load(&column);
        }
        transposed
    }
}

/// Something to do with whichever vectors are at hand.
pub(super) trait Kernel {
    /// What it gives.
    type Output;
    /// Does it. Implementations and all they call are `#[inline(always)]`, so that they are compiled for the instruction set of the caller.
    fn run<V: Lanes>(self) -> Self::Output;
}

/// Runs a kernel on an instruction set, which must be one that [`Isa::is_available`] found: on others it falls back to the scalar one.
pub(super) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if isa.is_available() => {
            // SAFETY: AVX2 was just found on this processor.
            unsafe { x86::run_avx2(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if isa.is_available() => {
            // SAFETY: AVX-512F was just found on this processor.
            unsafe { x86::run_avx512(kernel) }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon if isa.is_available() => {
            // SAFETY: NEON was just found on this processor.
            unsafe { neon::run_neon(kernel) }
        }
        _ => kernel.run::<scalar::Scalar>(),
    }
}
