//! Decodes tiles into rows, rotated as they are stored.

use super::super::arch::{Kernel, Lanes};
use super::super::block::{CHUNK, GROUP, GROUPS, TILE_ROWS, Tile, codes_at};

/// Decodes `columns / 256` tiles into eight rows of `columns` values.
pub(in crate::tcq) struct Decode<'a> {
    /// The tiles of the rows.
    pub(in crate::tcq) tiles: &'a [Tile],
    /// The rows, one after the other.
    pub(in crate::tcq) rows: &'a mut [f32],
    /// The length of a row.
    pub(in crate::tcq) columns: usize,
}

impl Kernel for Decode<'_> {
    type Output = ();

    /// Needs no lanes: the loop is left to the compiler, which here may use the instruction set of the caller.
    #[inline(always)]
    fn run<V: Lanes>(self) {
        for (chunk, tile) in self.tiles.iter().enumerate() {
            unpack(tile, &mut self.rows[chunk * CHUNK..], self.columns);
        }
    }
}

#[inline(always)]
fn unpack(tile: &Tile, rows: &mut [f32], stride: usize) {
    for row in 0..TILE_ROWS {
        let values = &mut rows[row * stride..][..CHUNK];
        for group in 0..GROUPS {
            let step = tile.step(row, group);
            let offset = tile.offset(row, group);
            let bytes = &tile.codes[codes_at(row, group)..][..GROUP / 2];
            let (pairs, _) = values[group * GROUP..][..GROUP].as_chunks_mut::<2>();
            for (pair, byte) in pairs.iter_mut().zip(bytes) {
                let (low, high) = ((byte << 4) as i8 >> 4, *byte as i8 >> 4);
                *pair = [step * f32::from(low) + offset, step * f32::from(high) + offset];
            }
        }
    }
}
