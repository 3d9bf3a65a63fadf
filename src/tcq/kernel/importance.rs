//! How much each column counts when the errors of a group are added up.
//!
//! Rows of a tile share it. Where all columns count alike nothing is multiplied, so the bits are those of plain sums.

use super::super::arch::Lanes;
use super::super::block::{CHUNK, GROUP};
use super::turned::Turned;

/// The importance of the columns of a tile.
pub(in crate::tcq) trait Importance {
    /// `value` times the importance of column `k` of each lane's group.
    fn weigh<V: Lanes>(&self, vector: usize, k: usize, value: V) -> V;

    /// The importance of a group: 32 where all columns count alike.
    #[inline(always)]
    fn total<V: Lanes>(&self, vector: usize) -> V {
        let mut total = V::splat(0.0);
        for k in 0..GROUP {
            total = total.add(self.weigh(vector, k, V::splat(1.0)));
        }
        total
    }
}

/// All columns count alike.
pub(in crate::tcq) struct Alike;

impl Importance for Alike {
    #[inline(always)]
    fn weigh<V: Lanes>(&self, _: usize, _: usize, value: V) -> V {
        value
    }

    #[inline(always)]
    fn total<V: Lanes>(&self, _: usize) -> V {
        V::splat(GROUP as f32)
    }
}

/// The importance of the columns, turned as the values are.
impl Importance for Turned {
    #[inline(always)]
    fn weigh<V: Lanes>(&self, vector: usize, k: usize, value: V) -> V {
        value.mul(self.load(vector, k))
    }
}

/// The importance of the columns of one group of each row.
pub(super) struct OfGroup<'a, I> {
    importance: &'a I,
    vector: usize,
}

impl<'a, I: Importance> OfGroup<'a, I> {
    #[inline(always)]
    pub(super) fn new(importance: &'a I, vector: usize) -> Self {
        Self { importance, vector }
    }

    /// `value` times the importance of column `k`.
    #[inline(always)]
    pub(super) fn weigh<V: Lanes>(&self, k: usize, value: V) -> V {
        self.importance.weigh(self.vector, k, value)
    }

    /// The sum over the columns.
    #[inline(always)]
    pub(super) fn total<V: Lanes>(&self) -> V {
        self.importance.total(self.vector)
    }
}

/// The least that a column counts, as a part of the mean over its tile: no group is without any importance.
const LEAST: f32 = 1e-4;

/// The importance of the columns of one tile with a mean of 1; 1 for each where none is above 0.
pub(in crate::tcq) fn of_tile(columns: &[f32]) -> [f32; CHUNK] {
    let mean = columns.iter().sum::<f32>() / CHUNK as f32;
    let usable = mean.is_normal() && mean > 0.0;
    std::array::from_fn(|k| if usable { (columns[k] / mean).max(LEAST) } else { 1.0 })
}
