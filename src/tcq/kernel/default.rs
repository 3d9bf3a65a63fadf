//! The default quantiser: a grid with zero point for every group, rounded to what the tile can store, then coded with what is stored.
//!
//! Made for least squared error. That no row is worse than the parity quantiser's is seen to by the caller, who has both drafts.

use half::f16;

use super::super::arch::Lanes;
use super::super::block::{CODE_SCALE, GROUP, GROUPS};
use super::draft::{Draft, Stored, by_row, codes, loss, pack_codes, place_codes, to_halves};
use super::importance::{Importance, OfGroup};
use super::round_even;
use super::search::{Grid, search};
use super::turned::{Turned, row_max, row_sum, vectors};

/// Quantises the rotated values of a tile.
#[inline(always)]
pub(in crate::tcq) fn draft<V: Lanes>(values: &Turned, importance: &impl Importance) -> Draft {
    let none = Grid { step: V::splat(0.0), offset: V::splat(0.0) };
    let mut grids = [none; GROUPS];
    for (vector, grid) in grids.iter_mut().enumerate().take(vectors::<V>()) {
        *grid = search(&values.load_group(vector), &OfGroup::new(importance, vector));
    }
    let mut excesses = [V::splat(0.0); GROUPS];
    for (excess, grid) in excesses.iter_mut().zip(&grids) {
        *excess = grid.offset_excess();
    }
    let excess = row_max(&excesses);
    let (mut steps, mut offsets) = ([V::splat(0.0); GROUPS], [V::splat(0.0); GROUPS]);
    for (vector, grid) in grids.iter_mut().enumerate() {
        *grid = grid.canonical(excess);
        (steps[vector], offsets[vector]) = (grid.step.abs(), grid.offset.abs());
    }
    let mut draft = Draft::zeroed();
    let (scale, stored_scale) = to_halves(row_max(&steps), round_half);
    let (zero, stored_zero) = to_halves(row_max(&offsets), round_half);
    (draft.tile.scale, draft.tile.zero) = (scale, zero);
    let (scale, zero) = (Stored::new(stored_scale), Stored::new(stored_zero));
    let mut errors = [V::splat(0.0); GROUPS];
    for vector in 0..vectors::<V>() {
        let values = values.load_group(vector);
        let settled = settle(&values, &OfGroup::new(importance, vector), grids[vector], scale, zero);
        place_codes(&mut draft.tile.scale_code, vector, settled.scale_code);
        place_codes(&mut draft.tile.zero_code, vector, settled.zero_code);
        let (step, offset) = (scale.coded(settled.scale_code), zero.coded(settled.zero_code));
        pack_codes(&mut draft.tile, vector, &codes(&values, step, offset));
        errors[vector] = settled.error_sq;
    }
    draft.error_sq = by_row(row_sum(&errors));
    draft
}

/// The codes of a group's grid and what they lose.
#[derive(Clone, Copy)]
struct Settled<V> {
    scale_code: V,
    zero_code: V,
    error_sq: V,
}

impl<V: Lanes> Settled<V> {
    /// Keeps the better of two, itself when they are equal.
    #[inline(always)]
    fn or_better(self, other: Self) -> Self {
        Self {
            scale_code: other.error_sq.select_less(self.error_sq, other.scale_code, self.scale_code),
            zero_code: other.error_sq.select_less(self.error_sq, other.zero_code, self.zero_code),
            error_sq: other.error_sq.min(self.error_sq),
        }
    }
}

/// Finds the codes of a grid: the nearest and their neighbours are tried.
#[inline(always)]
fn settle<V: Lanes>(
    values: &[V; GROUP],
    importance: &OfGroup<'_, impl Importance>,
    grid: Grid<V>,
    scale: Stored<V>,
    zero: Stored<V>,
) -> Settled<V> {
    let loss = |scale_code, zero_code| loss(values, importance, scale.coded(scale_code), zero.coded(zero_code));
    let scale_code = clamp_code(round_even(clamp_code(grid.step.mul(scale.to_code))));
    let zero_code = clamp_code(round_even(clamp_code(grid.offset.mul(zero.to_code))));
    let mut best = Settled { scale_code, zero_code, error_sq: loss(scale_code, zero_code) };
    for (scale_move, zero_move) in [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)] {
        let scale_code = clamp_code(scale_code.add(V::splat(scale_move)));
        let zero_code = clamp_code(zero_code.add(V::splat(zero_move)));
        let error_sq = loss(scale_code, zero_code);
        best = best.or_better(Settled { scale_code, zero_code, error_sq });
    }
    best
}

#[inline(always)]
fn clamp_code<V: Lanes>(code: V) -> V {
    code.max(V::splat(-CODE_SCALE)).min(V::splat(CODE_SCALE))
}

/// Rounds to the nearest fp16, but upwards where that would cost more than a thousandth (subnormals), and never to infinity.
fn round_half(value: f32) -> f16 {
    let nearest = f16::from_f32(value.min(f16::MAX.to_f32()));
    let short = nearest.to_f32() < value * 0.999 && nearest < f16::MAX;
    if short { f16::from_bits(nearest.to_bits() + 1) } else { nearest }
}
