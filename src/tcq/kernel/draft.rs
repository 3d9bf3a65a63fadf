//! A tile in the making: scales, codes and the error that they leave, before they are packed into bytes.
//!
//! Several drafts of a tile may be made; each row is then written from the best.

use bytemuck::Zeroable;
use half::f16;

use super::super::arch::Lanes;
use super::super::block::{CODE_SCALE, GROUP, GROUPS, TILE_ROWS, Tile, codes_at};
use super::importance::{Importance, OfGroup};
use super::turned::{Turned, group_of, vectors};
use super::{invert, round_code};

/// What a tile will hold.
pub(in crate::tcq) struct Draft {
    /// The tile.
    pub(in crate::tcq) tile: Tile,
    /// The squared error of each row, from the values as they will be decoded, columns counting by their importance.
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
        Self { tile: Tile::zeroed(), error_sq: [0.0; TILE_ROWS] }
    }

    /// Takes a row from another draft.
    #[inline(always)]
    pub(in crate::tcq) fn take_row(&mut self, from: &Draft, row: usize) {
        let (to, from_tile) = (&mut self.tile, &from.tile);
        to.scale[row] = from_tile.scale[row];
        to.zero[row] = from_tile.zero[row];
        to.scale_code[row] = from_tile.scale_code[row];
        to.zero_code[row] = from_tile.zero_code[row];
        for at in (0..GROUPS).map(|group| codes_at(row, group)) {
            to.codes[at..at + GROUP / 2].copy_from_slice(&from_tile.codes[at..at + GROUP / 2]);
        }
        self.error_sq[row] = from.error_sq[row];
    }
}

/// Packs the codes of the groups of a vector, -8..=7 each, into the tile.
///
/// Four codes make 16 bits of the tile. They are put together as a number below 2^16, each code as 8 more than it is so that none borrows
/// from the next; flipping the top bit of every nibble then gives two's complement.
#[inline(always)]
pub(super) fn pack_codes<V: Lanes>(tile: &mut Tile, vector: usize, codes: &[V; GROUP]) {
    let mut words = [V::splat(WORD_BITS); TILE_ROWS];
    for (word, codes) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
        let low = codes[0].add(codes[1].mul(V::splat(16.0)));
        let high = codes[2].add(codes[3].mul(V::splat(16.0)));
        *word = low.add(high.mul(V::splat(256.0))).add(*word);
    }
    for (row, words) in V::transpose(words).into_iter().enumerate() {
        let words = lanes(words);
        for half in 0..V::WIDTH / TILE_ROWS {
            let group = group_of::<V>(vector, half * TILE_ROWS);
            let bytes = tile.codes[codes_at(row, group)..][..GROUP / 2].as_chunks_mut::<2>().0;
            for (bytes, word) in bytes.iter_mut().zip(&words[half * TILE_ROWS..]) {
                *bytes = (word.to_bits() as u16 ^ 0x8888).to_le_bytes();
            }
        }
    }
}

/// Raises four nibbles by 8 each, and brings the last bit of the mantissa to the ones.
const WORD_BITS: f32 = 0x8888 as f32 + 8_388_608.0;

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

/// Codes a group with a step and an offset, and measures what is lost: the squared error, columns counting by their importance.
#[inline(always)]
pub(super) fn loss<V: Lanes>(values: &[V; GROUP], importance: &OfGroup<'_, impl Importance>, step: V, offset: V) -> V {
    let inverse = invert(step);
    let error = |k: usize| importance.weigh(k, squared_error(values[k], inverse, step, offset));
    let (mut even, mut odd) = (V::splat(0.0), V::splat(0.0));
    for k in (0..GROUP).step_by(2) {
        even = even.add(error(k));
        odd = odd.add(error(k + 1));
    }
    even.add(odd)
}

#[inline(always)]
fn squared_error<V: Lanes>(value: V, inverse: V, step: V, offset: V) -> V {
    let code = round_code(value.sub(offset).mul(inverse));
    let error = value.sub(step.mul(code).add(offset));
    error.mul(error)
}

/// Codes a group with a step and an offset.
#[inline(always)]
pub(super) fn codes<V: Lanes>(values: &[V; GROUP], step: V, offset: V) -> [V; GROUP] {
    let inverse = invert(step);
    let mut codes = *values;
    for code in &mut codes {
        *code = round_code(code.sub(offset).mul(inverse));
    }
    codes
}
