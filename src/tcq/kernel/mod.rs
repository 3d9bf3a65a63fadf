//! The codec's inner loops, written once over [`Lanes`](super::arch::Lanes): a tile is turned so that a lane is one of its rows.
//!
//! All work is vertical, one tile at a time, in buffers of fixed size; the layout of rows in memory and errors are the caller's business.

pub(super) mod decode;
pub(super) mod default;
pub(super) mod draft;
pub(super) mod importance;
pub(super) mod parity;
pub(super) mod search;
pub(super) mod turned;

use super::arch::Lanes;

/// Rounds to the nearest integer, ties to even, where the magnitude is below 2^22: adding this makes the last mantissa bit the ones.
///
/// Besides, the low bits of the sum are the integer in two's complement.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// Rounds to the nearest integer, ties to even; for magnitudes below 2^22.
#[inline(always)]
fn round_even<V: Lanes>(x: V) -> V {
    x.add(V::splat(ROUNDER)).sub(V::splat(ROUNDER))
}

/// Rounds to the nearest integer, ties away from zero, as C's `roundf` does; for magnitudes below 2^22.
#[inline(always)]
fn round_away<V: Lanes>(x: V) -> V {
    let magnitude = x.abs();
    let even = round_even(magnitude);
    let above = magnitude.sub(even).select_less(V::splat(0.5), V::splat(0.0), V::splat(1.0));
    let rounded = even.add(above);
    x.select_less(V::splat(0.0), V::splat(0.0).sub(rounded), rounded)
}

/// Rounds to a 4-bit code.
#[inline(always)]
fn round_code<V: Lanes>(x: V) -> V {
    round_even(x.max(V::splat(-8.0)).min(V::splat(7.0)))
}

/// Inverts; 0 where the magnitude is so small that the inverse could overflow.
#[inline(always)]
fn invert<V: Lanes>(x: V) -> V {
    let small = V::splat(1e-30);
    x.abs().select_less(small, V::splat(0.0), V::splat(1.0).div(x.abs().select_less(small, small, x)))
}

#[cfg(test)]
mod tests {
    use super::super::arch::{Kernel, dispatch};
    use super::super::isa::Isa;
    use super::*;

    struct RoundAway([f32; 16]);

    impl Kernel for RoundAway {
        type Output = [f32; 16];

        fn run<V: Lanes>(self) -> [f32; 16] {
            let mut rounded = [0.0; 16];
            for at in (0..16).step_by(V::WIDTH) {
                round_away(V::load(&self.0[at..])).store(&mut rounded[at..]);
            }
            rounded
        }
    }

    #[test]
    fn ties_go_away_from_zero_and_neighbours_do_not() {
        let below = |x: f32| f32::from_bits(x.to_bits() - 1);
        let values = [
            0.5,
            -0.5,
            1.5,
            -1.5,
            2.5,
            -2.5,
            6.5,
            -6.5,
            63.5,
            below(0.5),
            -below(2.5),
            0.0,
            -0.2,
            126.49,
            3.0,
            below(1.5),
        ];
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, RoundAway(values)), values.map(f32::round), "{isa}");
        }
    }
}
