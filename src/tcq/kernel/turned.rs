//! The values of one tile, turned so that vectors run along the rows, and their Hadamard transform.
//!
//! Vector `i` holds group `i` of all eight rows; with sixteen lanes its upper half holds group `i + 4`. So a scale of a group, a maximum of
//! a row and the butterflies of the transform are all operations between vectors, and none between lanes but for the two halves.

use super::super::arch::{Kernel, Lanes};
use super::super::block::{CHUNK, GROUP, GROUPS, TILE_ROWS};
use crate::math::hadamard::FWHT_NORM;

/// The values of a tile.
const VALUES: usize = TILE_ROWS * CHUNK;

/// One value for each element of a tile; in which order depends on the lanes of the kernel that fills it.
#[repr(C, align(64))]
pub(in crate::tcq) struct Turned([f32; VALUES]);

/// How many vectors hold one value for each group of a tile.
#[inline(always)]
pub(super) const fn vectors<V: Lanes>() -> usize {
    TILE_ROWS * GROUPS / V::WIDTH
}

/// The group that lane `lane` of vector `vector` belongs to.
#[inline(always)]
pub(super) const fn group_of<V: Lanes>(vector: usize, lane: usize) -> usize {
    vector + lane / TILE_ROWS * vectors::<V>()
}

/// The column of element `k` of the group in a half of a vector.
#[inline(always)]
const fn column<V: Lanes>(vector: usize, half: usize, k: usize) -> usize {
    group_of::<V>(vector, half * TILE_ROWS) % GROUPS * GROUP + k
}

impl Turned {
    #[inline(always)]
    pub(in crate::tcq) fn zeroed() -> Self {
        Self([0.0; VALUES])
    }

    /// Reads element `k` of the groups of a vector.
    #[inline(always)]
    pub(super) fn load<V: Lanes>(&self, vector: usize, k: usize) -> V {
        V::load(&self.0[(vector * GROUP + k) * V::WIDTH..])
    }

    /// Reads all elements of the groups of a vector.
    #[inline(always)]
    pub(super) fn load_group<V: Lanes>(&self, vector: usize) -> [V; GROUP] {
        let mut values = [V::splat(0.0); GROUP];
        for (k, value) in values.iter_mut().enumerate() {
            *value = self.load(vector, k);
        }
        values
    }

    /// Writes element `k` of the groups of a vector.
    #[inline(always)]
    pub(super) fn store<V: Lanes>(&mut self, vector: usize, k: usize, values: V) {
        values.store(&mut self.0[(vector * GROUP + k) * V::WIDTH..]);
    }

    /// Reads eight rows of 256 values that are `stride` apart.
    #[inline(always)]
    pub(in crate::tcq) fn gather<V: Lanes>(&mut self, rows: &[f32], stride: usize) {
        for vector in 0..vectors::<V>() {
            for k in (0..GROUP).step_by(TILE_ROWS) {
                let mut along = [V::splat(0.0); TILE_ROWS];
                for (row, values) in along.iter_mut().enumerate() {
                    let row = &rows[row * stride..][..CHUNK];
                    *values = V::load_halves(&row[column::<V>(vector, 0, k)..], &row[column::<V>(vector, 1, k)..]);
                }
                for (i, values) in V::transpose(along).into_iter().enumerate() {
                    self.store(vector, k + i, values);
                }
            }
        }
    }

    /// Writes eight rows of 256 values that are `stride` apart.
    #[inline(always)]
    fn scatter<V: Lanes>(&self, rows: &mut [f32], stride: usize) {
        for vector in 0..vectors::<V>() {
            for k in (0..GROUP).step_by(TILE_ROWS) {
                let mut across = [V::splat(0.0); TILE_ROWS];
                for (i, values) in across.iter_mut().enumerate() {
                    *values = self.load(vector, k + i);
                }
                for (row, values) in V::transpose(across).into_iter().enumerate() {
                    let (low, high) = rows[row * stride..][..CHUNK].split_at_mut(CHUNK / 2);
                    let low_at = column::<V>(vector, 0, k);
                    if V::WIDTH == TILE_ROWS && low_at >= CHUNK / 2 {
                        values.store(&mut high[low_at - CHUNK / 2..]);
                    } else {
                        values.store_halves(&mut low[low_at..], &mut high[column::<V>(vector, 1, k) % (CHUNK / 2)..]);
                    }
                }
            }
        }
    }

    /// Transforms the rows in place, with the additions of [`crate::math::hadamard::fwht256`] in its order.
    #[inline(always)]
    fn fwht<V: Lanes>(&mut self) {
        for vector in 0..vectors::<V>() {
            let mut values = self.load_group::<V>(vector);
            butterflies::<V, 1>(&mut values);
            butterflies::<V, 2>(&mut values);
            butterflies::<V, 4>(&mut values);
            butterflies::<V, 8>(&mut values);
            butterflies::<V, 16>(&mut values);
            for (k, value) in values.into_iter().enumerate() {
                self.store(vector, k, value);
            }
        }
        for k in 0..GROUP {
            let mut across = [V::splat(0.0); GROUPS];
            let across = &mut across[..vectors::<V>()];
            for (vector, value) in across.iter_mut().enumerate() {
                *value = self.load(vector, k);
            }
            butterflies_across(across);
            for (vector, value) in across.iter().enumerate() {
                self.store(vector, k, value.butterfly_halves().mul(V::splat(FWHT_NORM)));
            }
        }
    }
}

/// One stage inside the groups.
#[inline(always)]
fn butterflies<V: Lanes, const H: usize>(values: &mut [V; GROUP]) {
    for j in 0..GROUP {
        if j & H == 0 {
            let (a, b) = (values[j], values[j + H]);
            values[j] = a.add(b);
            values[j + H] = a.sub(b);
        }
    }
}

/// The stages between the vectors of one element; with sixteen lanes the last stage is left to the halves.
#[inline(always)]
fn butterflies_across<V: Lanes>(values: &mut [V]) {
    for h in [1, 2, 4] {
        for j in 0..values.len() {
            if j & h == 0 && j + h < values.len() {
                let (a, b) = (values[j], values[j + h]);
                values[j] = a.add(b);
                values[j + h] = a.sub(b);
            }
        }
    }
}

/// The largest of each row's groups, in all lanes of the row.
#[inline(always)]
pub(super) fn row_max<V: Lanes>(values: &[V]) -> V {
    let mut max = values[0];
    for value in &values[1..vectors::<V>()] {
        max = max.max(*value);
    }
    max.max(max.swap_halves())
}

/// The sum over each row's groups, in all lanes of the row: first groups `g` and `g + 4`, then these in order.
#[inline(always)]
pub(super) fn row_sum<V: Lanes>(values: &[V]) -> V {
    let mut sum = pair_of_groups(values, 0);
    for i in 1..GROUPS / 2 {
        sum = sum.add(pair_of_groups(values, i));
    }
    sum
}

/// The sum of groups `i` and `i + 4`.
#[inline(always)]
fn pair_of_groups<V: Lanes>(values: &[V], i: usize) -> V {
    values[i].add(if V::WIDTH == TILE_ROWS { values[i + GROUPS / 2] } else { values[i].swap_halves() })
}

/// Transforms chunks of 256 values in place.
pub(in crate::tcq) struct Fwht<'a>(pub(in crate::tcq) &'a mut [f32]);

impl Kernel for Fwht<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let mut turned = Turned::zeroed();
        let mut eights = self.0.chunks_exact_mut(VALUES);
        for rows in &mut eights {
            turned.gather::<V>(rows, CHUNK);
            turned.fwht::<V>();
            turned.scatter::<V>(rows, CHUNK);
        }
        let rest = eights.into_remainder();
        if !rest.is_empty() {
            let mut rows = [0.0; VALUES];
            rows[..rest.len()].copy_from_slice(rest);
            turned.gather::<V>(&rows, CHUNK);
            turned.fwht::<V>();
            turned.scatter::<V>(&mut rows, CHUNK);
            rest.copy_from_slice(&rows[..rest.len()]);
        }
    }
}
