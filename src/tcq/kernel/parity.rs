//! The quantiser of llama.cpp-rrs, operation for operation, with the error that it leaves. Importance changes only how that is added up.
//!
//! Its weak spots are kept: an empty group counts as one of scale 1, and codes come from the scale before it is rounded to fp16 and int8.

use half::f16;

use super::super::arch::Lanes;
use super::super::block::{CODE_SCALE, GROUP, GROUPS, Tile};
use super::draft::{Draft, by_row, pack_codes, place_codes, to_halves};
use super::importance::{Importance, OfGroup};
use super::round_away;
use super::turned::{Turned, row_max, row_sum, vectors};

/// Scales below this count as those of an empty group.
pub(in crate::tcq) const EMPTY_SCALE: f32 = 1e-10;

/// Quantises the rotated values of a tile.
#[inline(always)]
pub(in crate::tcq) fn draft<V: Lanes>(values: &Turned, importance: &impl Importance) -> Draft {
    let mut draft = Draft::zeroed();
    let mut scales = [V::splat(1.0); GROUPS];
    for (vector, scale) in scales.iter_mut().enumerate().take(vectors::<V>()) {
        *scale = group_scale(&values.load_group(vector));
    }
    let largest = row_max(&scales);
    let (halves, stored) = to_halves(largest, f16::from_f32);
    draft.tile.scale = halves;
    let mut errors = [V::splat(0.0); GROUPS];
    for vector in 0..vectors::<V>() {
        let scale = scales[vector];
        let code = round_away(scale.div(largest).mul(V::splat(CODE_SCALE))).min(V::splat(CODE_SCALE));
        place_codes(&mut draft.tile.scale_code, vector, code);
        let step = stored.mul(code).div(V::splat(CODE_SCALE));
        errors[vector] = code_group(&mut draft.tile, values, &OfGroup::new(importance, vector), vector, scale, step);
    }
    draft.error_sq = by_row(row_sum(&errors));
    draft
}

/// max |y| / 7, or 1 for an empty group.
#[inline(always)]
fn group_scale<V: Lanes>(values: &[V; GROUP]) -> V {
    let mut largest = V::splat(0.0);
    for value in values {
        largest = largest.max(value.abs());
    }
    let scale = largest.div(V::splat(7.0));
    scale.select_less(V::splat(EMPTY_SCALE), V::splat(1.0), scale)
}

/// Codes a group with its own scale and measures the error that decoding with `step` leaves.
#[inline(always)]
fn code_group<V: Lanes>(
    tile: &mut Tile,
    values: &Turned,
    importance: &OfGroup<'_, impl Importance>,
    vector: usize,
    scale: V,
    step: V,
) -> V {
    let inverse = V::splat(1.0).div(scale);
    let mut error_sq = V::splat(0.0);
    let mut codes = values.load_group::<V>(vector);
    for (k, code) in codes.iter_mut().enumerate() {
        let value = *code;
        *code = round_away(value.mul(inverse)).max(V::splat(-8.0)).min(V::splat(7.0));
        let error = value.sub(step.mul(*code));
        error_sq = error_sq.add(importance.weigh(k, error.mul(error)));
    }
    pack_codes(tile, vector, &codes);
    error_sq
}
