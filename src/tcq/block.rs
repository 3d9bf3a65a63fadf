//! The bytes of TCQ4_K32: type ids, sizes, the tile of 8 rows by 256 columns and the row block of the early format.
//!
//! Knows where every field lies and what one element decodes to; how good values for the fields are found is not its business.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// The rows of a tile.
pub const TILE_ROWS: usize = 8;
/// The columns of a tile: one Hadamard transform.
pub const CHUNK: usize = 256;
/// The elements of a row that share a scale and a zero point.
pub const GROUP: usize = 32;
/// The groups of a row in one tile.
pub const GROUPS: usize = CHUNK / GROUP;
/// The bytes of a tile (4.625 bits a weight).
pub const TILE_BYTES: usize = 1184;
/// The bytes of a row block of the early format; also what a row of a tile takes on average.
pub const ROW_BYTES: usize = 148;

/// The ggml type id of TCQ4_K32 in our files. Upstream counts its types upwards from 0 and the fork's 42 is upstream's Q2_0 today: this
/// one is the only place to change when upstream arrives here too.
pub const GGML_TYPE_ID: u32 = 80;
/// `general.file_type` of our files.
pub const FTYPE_ID: u32 = 80;
/// The ggml type id that llama.cpp-rrs uses.
pub const FORK_GGML_TYPE_ID: u32 = 42;
/// `general.file_type` that llama.cpp-rrs uses.
pub const FORK_FTYPE_ID: u32 = 40;

/// The divisor of the group scale codes: a code of ±127 stands for the whole of the row's scale.
pub const CODE_SCALE: f32 = 127.0;

/// 8 rows of 256 rotated weights. A weight is `(S * sc / 127) * q + (Z * zc / 127)`, evaluated in f32 in this order.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Tile {
    /// Two's-complement nibbles: element `k` of group `g` of row `r` is at byte `128 g + 16 r + k / 2`, the low half if `k` is even.
    pub codes: [u8; TILE_ROWS * CHUNK / 2],
    /// S: the largest scale of each row, little-endian.
    pub scale: [f16; TILE_ROWS],
    /// Z: the largest offset of each row, little-endian.
    pub zero: [f16; TILE_ROWS],
    /// sc: `[row][group]`, in 127ths of S.
    pub scale_code: [[i8; GROUPS]; TILE_ROWS],
    /// zc: `[row][group]`, in 127ths of Z.
    pub zero_code: [[i8; GROUPS]; TILE_ROWS],
}

const _: () = assert!(size_of::<Tile>() == TILE_BYTES);
const _: () = assert!(std::mem::offset_of!(Tile, scale) == 1024);
const _: () = assert!(std::mem::offset_of!(Tile, zero) == 1040);
const _: () = assert!(std::mem::offset_of!(Tile, scale_code) == 1056);
const _: () = assert!(std::mem::offset_of!(Tile, zero_code) == 1120);
const _: () = assert!(TILE_BYTES == TILE_ROWS * ROW_BYTES);
const _: () = assert!(cfg!(target_endian = "little"), "the structs are the file's bytes: little-endian only");

/// One row of 256 rotated weights in the format of llama.cpp-rrs before 2026-01-21. A weight is `(S * sc) * q + (Z * zc)`: no 127ths.
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct EarlyBlock {
    /// Two's-complement nibbles: element `k` of the row is at byte `k / 2`, the low half if `k` is even.
    pub codes: [u8; CHUNK / 2],
    /// S: a 127th of the row's largest scale.
    pub scale: f16,
    /// Z: a 127th of the row's largest offset; always 0 in the files of the fork.
    pub zero: f16,
    /// sc, by group.
    pub scale_code: [i8; GROUPS],
    /// zc, by group.
    pub zero_code: [i8; GROUPS],
}

const _: () = assert!(size_of::<EarlyBlock>() == ROW_BYTES);
const _: () = assert!(std::mem::offset_of!(EarlyBlock, scale) == 128);
const _: () = assert!(std::mem::offset_of!(EarlyBlock, zero) == 130);
const _: () = assert!(std::mem::offset_of!(EarlyBlock, scale_code) == 132);
const _: () = assert!(std::mem::offset_of!(EarlyBlock, zero_code) == 140);

/// Sign-extends the nibble of `byte` that holds an element with this `column`.
fn nibble(byte: u8, column: usize) -> i8 {
    let shifted = if column.is_multiple_of(2) { byte << 4 } else { byte };
    (shifted as i8) >> 4
}

/// Where the codes of 32 elements begin in [`Tile::codes`].
pub(super) const fn codes_at(row: usize, group: usize) -> usize {
    GROUP / 2 * (TILE_ROWS * group + row)
}

impl Tile {
    /// Reads the code of one element, -8..=7.
    ///
    /// # Panics
    /// If `row` is not below 8 or `column` not below 256.
    pub fn code(&self, row: usize, column: usize) -> i8 {
        assert!(row < TILE_ROWS && column < CHUNK);
        nibble(self.codes[codes_at(row, column / GROUP) + column % GROUP / 2], column)
    }

    /// Sets the code of one element to the low four bits of `code`.
    ///
    /// # Panics
    /// If `row` is not below 8 or `column` not below 256.
    pub fn set_code(&mut self, row: usize, column: usize, code: i8) {
        assert!(row < TILE_ROWS && column < CHUNK);
        let byte = &mut self.codes[codes_at(row, column / GROUP) + column % GROUP / 2];
        let bits = code as u8 & 15;
        *byte = if column.is_multiple_of(2) { *byte & 0xf0 | bits } else { *byte & 0x0f | bits << 4 };
    }

    /// The distance of neighbouring values of a group: `(S * sc) / 127`.
    ///
    /// # Panics
    /// If `row` or `group` is not below 8.
    #[inline]
    pub fn step(&self, row: usize, group: usize) -> f32 {
        self.scale[row].to_f32() * f32::from(self.scale_code[row][group]) / CODE_SCALE
    }

    /// The value of code 0 of a group: `(Z * zc) / 127`.
    ///
    /// # Panics
    /// If `row` or `group` is not below 8.
    #[inline]
    pub fn offset(&self, row: usize, group: usize) -> f32 {
        self.zero[row].to_f32() * f32::from(self.zero_code[row][group]) / CODE_SCALE
    }

    /// Decodes one rotated weight.
    ///
    /// # Panics
    /// If `row` is not below 8 or `column` not below 256.
    pub fn value(&self, row: usize, column: usize) -> f32 {
        let group = column / GROUP;
        self.step(row, group) * f32::from(self.code(row, column)) + self.offset(row, group)
    }
}

impl EarlyBlock {
    /// Reads the code of one element, -8..=7.
    ///
    /// # Panics
    /// If `column` is not below 256.
    pub fn code(&self, column: usize) -> i8 {
        nibble(self.codes[column / 2], column)
    }

    /// Decodes one rotated weight.
    ///
    /// # Panics
    /// If `column` is not below 256.
    pub fn value(&self, column: usize) -> f32 {
        let group = column / GROUP;
        let step = self.scale.to_f32() * f32::from(self.scale_code[group]);
        let offset = self.zero.to_f32() * f32::from(self.zero_code[group]);
        step * f32::from(self.code(column)) + offset
    }
}

/// What makes a tile undecodable.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TileDefect {
    /// The scale of a row is NaN or infinite.
    #[error("row {row} of the tile has scale {value}")]
    Scale {
        /// The row within the tile.
        row: usize,
        /// The scale.
        value: f32,
    },
    /// The offset of a row is NaN or infinite.
    #[error("row {row} of the tile has offset {value}")]
    Zero {
        /// The row within the tile.
        row: usize,
        /// The offset.
        value: f32,
    },
}

/// Checks that every weight of the tile decodes to a finite value: S and Z are finite in every row.
pub fn validate_tile(tile: &Tile) -> Result<(), TileDefect> {
    for row in 0..TILE_ROWS {
        let (scale, zero) = (tile.scale[row].to_f32(), tile.zero[row].to_f32());
        if !scale.is_finite() {
            return Err(TileDefect::Scale { row, value: scale });
        }
        if !zero.is_finite() {
            return Err(TileDefect::Zero { row, value: zero });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_lie_where_the_format_says() {
        let mut tile = Tile::zeroed();
        tile.set_code(3, 2 * 32 + 5, -7);
        assert_eq!(tile.codes[128 * 2 + 16 * 3 + 2], 0x90);
        tile.set_code(3, 2 * 32 + 4, 7);
        assert_eq!(tile.codes[128 * 2 + 16 * 3 + 2], 0x97);
        assert_eq!((tile.code(3, 68), tile.code(3, 69)), (7, -7));
    }

    #[test]
    fn a_value_is_scale_times_code_plus_offset() {
        let mut tile = Tile::zeroed();
        tile.scale[1] = f16::from_f32(2.0);
        tile.zero[1] = f16::from_f32(0.5);
        tile.scale_code[1][7] = -127;
        tile.zero_code[1][7] = 127;
        tile.set_code(1, 255, -8);
        assert_eq!(tile.value(1, 255), 16.5);
    }

    #[test]
    fn a_tile_with_an_infinite_scale_is_refused() {
        let mut tile = Tile::zeroed();
        assert_eq!(validate_tile(&tile), Ok(()));
        tile.zero[5] = f16::NEG_INFINITY;
        assert_eq!(validate_tile(&tile), Err(TileDefect::Zero { row: 5, value: f32::NEG_INFINITY }));
        tile.scale[2] = f16::INFINITY;
        assert_eq!(validate_tile(&tile), Err(TileDefect::Scale { row: 2, value: f32::INFINITY }));
    }
}
