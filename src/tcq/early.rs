//! The early format of llama.cpp-rrs: row blocks of 148 bytes, to read its old files and to prove that they are understood.
//!
//! Scalar code only: these files are read once, to be converted.

use half::f16;

use super::block::{CHUNK, CODE_SCALE, EarlyBlock, GROUP, GROUPS, ROW_BYTES, TILE_ROWS, Tile, codes_at};
use super::kernel::parity::EMPTY_SCALE;
use crate::math::hadamard::fwht256;

/// Decodes row blocks into rows of `columns` weights each, with the rotation undone; any number of rows.
///
/// # Panics
/// If `columns` is not a multiple of 256, or there is not one block for each 256 values.
pub fn decode_rows(blocks: &[EarlyBlock], columns: usize, rows: &mut [f32]) {
    assert!(columns.is_multiple_of(CHUNK), "{columns} columns are not whole chunks of {CHUNK}");
    assert_eq!(blocks.len() * CHUNK, rows.len(), "one block for each {CHUNK} values");
    for (block, values) in blocks.iter().zip(rows.as_chunks_mut::<CHUNK>().0) {
        *values = decode(block);
        fwht256(values);
    }
}

/// Decodes a row block and leaves the weights rotated.
pub fn decode(block: &EarlyBlock) -> [f32; CHUNK] {
    std::array::from_fn(|column| block.value(column))
}

/// Encodes 256 rotated weights by the fork's rules.
pub fn encode(values: &[f32; CHUNK]) -> EarlyBlock {
    let scales: [f32; GROUPS] = std::array::from_fn(|group| {
        let largest = values[group * GROUP..][..GROUP].iter().fold(0.0, |max: f32, value| max.max(value.abs()));
        if largest / 7.0 < EMPTY_SCALE { 1.0 } else { largest / 7.0 }
    });
    let scale = scales.iter().copied().fold(0.0, f32::max) / CODE_SCALE;
    let mut block = EarlyBlock {
        codes: [0; CHUNK / 2],
        scale: f16::from_f32(scale),
        zero: f16::ZERO,
        scale_code: scales.map(|group| (group / scale).round().clamp(-CODE_SCALE, CODE_SCALE) as i8),
        zero_code: [0; GROUPS],
    };
    for (k, value) in values.iter().enumerate() {
        let code = (value * (1.0 / scales[k / GROUP])).round().clamp(-8.0, 7.0) as i8;
        block.codes[k / 2] |= (code as u8 & 15) << (k % 2 * 4);
    }
    block
}

/// Turns eight row blocks of the same columns into a tile. Codes are kept; S and Z become 127 times as large, rounded to fp16.
pub fn to_tile(blocks: &[EarlyBlock; TILE_ROWS]) -> Tile {
    let mut tile = Tile {
        codes: [0; TILE_ROWS * CHUNK / 2],
        scale: blocks.map(|block| f16::from_f32(block.scale.to_f32() * CODE_SCALE)),
        zero: blocks.map(|block| f16::from_f32(block.zero.to_f32() * CODE_SCALE)),
        scale_code: blocks.map(|block| block.scale_code),
        zero_code: blocks.map(|block| block.zero_code),
    };
    for (row, block) in blocks.iter().enumerate() {
        for (group, codes) in block.codes.chunks_exact(GROUP / 2).enumerate() {
            tile.codes[codes_at(row, group)..][..GROUP / 2].copy_from_slice(codes);
        }
    }
    tile
}

/// Turns a tile into eight row blocks. Codes are kept; S and Z become a 127th, rounded to fp16.
pub fn from_tile(tile: &Tile) -> [EarlyBlock; TILE_ROWS] {
    std::array::from_fn(|row| {
        let mut block = EarlyBlock {
            codes: [0; CHUNK / 2],
            scale: f16::from_f32(tile.scale[row].to_f32() / CODE_SCALE),
            zero: f16::from_f32(tile.zero[row].to_f32() / CODE_SCALE),
            scale_code: tile.scale_code[row],
            zero_code: tile.zero_code[row],
        };
        for (group, codes) in block.codes.chunks_exact_mut(GROUP / 2).enumerate() {
            codes.copy_from_slice(&tile.codes[codes_at(row, group)..][..GROUP / 2]);
        }
        block
    })
}

const _: () = assert!(ROW_BYTES == CHUNK / 2 + 4 + 2 * GROUPS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_keeps_the_codes_and_almost_the_scale() {
        let values = std::array::from_fn(|k| ((k * 37 % 101) as f32 - 50.0) * 0.01);
        let block = encode(&values);
        let tile = to_tile(&[block; TILE_ROWS]);
        for back in from_tile(&tile) {
            assert_eq!((back.codes, back.scale_code), (block.codes, block.scale_code));
            let (a, b) = (back.scale.to_f32(), block.scale.to_f32());
            assert!((a / b - 1.0).abs() < 1.0 / 1024.0, "{a} against {b}");
        }
        for column in 0..CHUNK {
            let (a, b) = (tile.value(5, column), block.value(column));
            assert!((a - b).abs() <= b.abs() / 1024.0, "{a} against {b}");
        }
    }
}
