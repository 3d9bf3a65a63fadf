//! A tile in the making: scales, codes and the error that they leave, before they are packed into bytes.
//!
//! Several drafts of a tile may be made; each row is then written from the best.

use half::f16;

use super::super::arch::Lanes;
use super::super::block::{CODE_SCALE, GROUP, GROUPS, TILE_ROWS, Tile, codes_at};
use super::turned::{Turned, group_of, vectors};
use super::{ROUNDER, invert, round_code};

/// What a tile will hold.
pub(in crate::tcq) struct Draft {
    /// The code of each element plus [`ROUNDER`], whose low bits are the nibble.
    pub(super) codes: Turned,
    /// S of each row.
    pub(super) scale: [f16; TILE_ROWS],
    /// Z of each row.
    pub(super) zero: [f16; TILE_ROWS],
    /// sc.
    pub(super) scale_code: [[i8; GROUPS]; TILE_ROWS],
    /// zc.
    pub(super) zero_code: [[i8; GROUPS]; TILE_ROWS],
    /// The squared error of each row, from the values as they will be decoded.
    pub(in crate::tcq) error_sq: [f32; TILE_ROWS],
}

/// A scale or offset of each row as it is stored.
#[derive(Clone, Copy)]
pub(super) struct Stored<V> {
    /// The value that the fp16 stands for.
    pub(super) value: V,
    /// What a group's value is multiplied with to get its code: `127 / value`, or 0.
    pub(super) to_code: V,
}

impl<V: Lanes> Stored<V> {
    #[inline(always)]
    pub(super) fn new(value: V) -> Self {
        Self { value, to_code: V::splat(CODE_SCALE).mul(invert(value)) }
    }

    /// What a code stands for: `(value * code) / 127`.
    #[inline(always)]
    pub(super) fn coded(self, code: V) -> V {
        self.value.mul(code).div(V::splat(CODE_SCALE))
    }
}

impl Draft {
    #[inline(always)]
    pub(super) fn zeroed() -> Self {
        Self {
            codes: Turned::zeroed(),
            scale: [f16::ZERO; TILE_ROWS],
            zero: [f16::ZERO; TILE_ROWS],
            scale_code: [[0; GROUPS]; TILE_ROWS],
            zero_code: [[0; GROUPS]; TILE_ROWS],
            error_sq: [0.0; TILE_ROWS],
        }
    }

    /// Writes the rows that `wanted` picks into a tile.
    #[inline(always)]
    pub(in crate::tcq) fn write<V: Lanes>(&self, tile: &mut Tile, wanted: impl Fn(usize) -> bool) {
        for row in (0..TILE_ROWS).filter(|&row| wanted(row)) {
            tile.scale[row] = self.scale[row];
            tile.zero[row] = self.zero[row];
            tile.scale_code[row] = self.scale_code[row];
            tile.zero_code[row] = self.zero_code[row];
            for group in 0..GROUPS {
                let bytes = &mut tile.codes[codes_at(row, group)..][..GROUP / 2];
                let mut nibbles = self.codes.group::<V>(row, group).map(|code| code.to_bits() as u8 & 15);
                for byte in bytes {
                    let low = nibbles.next().unwrap_or(0);
                    *byte = low | nibbles.next().unwrap_or(0) << 4;
                }
            }
        }
    }
}

/// Puts the codes of one group per lane where they belong.
#[inline(always)]
pub(super) fn place_codes<V: Lanes>(to: &mut [[i8; GROUPS]; TILE_ROWS], vector: usize, codes: V) {
    for (lane, code) in lanes(codes).into_iter().take(V::WIDTH).enumerate() {
        to[lane % TILE_ROWS][group_of::<V>(vector, lane)] = code as i8;
    }
}

/// Rounds a value of each row to fp16 with `round`; gives the halves and what they stand for.
#[inline(always)]
pub(super) fn to_halves<V: Lanes>(values: V, round: impl Fn(f32) -> f16) -> ([f16; TILE_ROWS], V) {
    let values = lanes(values);
    let halves = std::array::from_fn(|row| round(values[row]));
    let back: [f32; 16] = std::array::from_fn(|lane| halves[lane % TILE_ROWS].to_f32());
    (halves, V::load(&back))
}

/// The lanes as an array; those beyond the width are 0.
#[inline(always)]
pub(super) fn lanes<V: Lanes>(values: V) -> [f32; 16] {
    let mut array = [0.0; 16];
    values.store(&mut array);
    array
}

/// The value of each row from lanes that agree within the row.
#[inline(always)]
pub(super) fn by_row<V: Lanes>(values: V) -> [f32; TILE_ROWS] {
    let values = lanes(values);
    std::array::from_fn(|row| values[row])
}

/// Adds up the squares of each row, element by element and then as [`super::turned::row_sum`] does.
#[inline(always)]
pub(in crate::tcq) fn sum_of_squares<V: Lanes>(values: &Turned) -> [f32; TILE_ROWS] {
    let mut sums = [V::splat(0.0); GROUPS];
    for (vector, sum) in sums.iter_mut().enumerate().take(vectors::<V>()) {
        for k in 0..GROUP {
            let value: V = values.load(vector, k);
            *sum = sum.add(value.mul(value));
        }
    }
    by_row(super::turned::row_sum(&sums))
}

/// Codes a group with a step and an offset, and measures what is lost: the squared error.
#[inline(always)]
pub(super) fn loss<V: Lanes>(values: &[V; GROUP], step: V, offset: V) -> V {
    let inverse = invert(step);
    let mut error_sq = [V::splat(0.0); 2];
    for (k, value) in values.iter().enumerate() {
        let code = round_code(value.sub(offset).mul(inverse));
        let error = value.sub(step.mul(code).add(offset));
        error_sq[k % 2] = error_sq[k % 2].add(error.mul(error));
    }
    error_sq[0].add(error_sq[1])
}

/// Codes a group with a step and an offset, for good.
#[inline(always)]
pub(super) fn store_codes<V: Lanes>(codes: &mut Turned, vector: usize, values: &[V; GROUP], step: V, offset: V) {
    let inverse = invert(step);
    for (k, value) in values.iter().enumerate() {
        codes.store(vector, k, round_code(value.sub(offset).mul(inverse)).add(V::splat(ROUNDER)));
    }
}
