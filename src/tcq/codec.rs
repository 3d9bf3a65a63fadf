//! Encodes rows of weights to tiles and decodes them.
//!
//! Works on eight rows at a time, in memory, on one thread; channel order, scales and files are for higher floors.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::arch::{Kernel, Lanes, dispatch};
use super::block::{CHUNK, GROUPS, TILE_ROWS, Tile};
use super::isa::{Isa, UnknownName};
use super::kernel::decode::Decode;
use super::kernel::draft::{Draft, sum_of_squares};
use super::kernel::importance::{Alike, Importance, of_tile};
use super::kernel::turned::{Fwht, Turned};
use super::kernel::{default, parity};

const _: () = assert!(GROUPS == TILE_ROWS, "the kernels use one constant where the other is meant");

/// How scales and codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoder {
    /// Byte for byte as llama.cpp-rrs does: symmetric, the largest magnitude of a group on ±7.
    Parity,
    /// A search for the least squared error with zero points; no row of a tile is worse than with [`Encoder::Parity`].
    #[default]
    Default,
    /// [`Encoder::Default`], with errors counting by the importance of their column where that is given.
    Weighted,
}

impl fmt::Display for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Encoder::Parity => "parity",
            Encoder::Default => "default",
            Encoder::Weighted => "weighted",
        })
    }
}

impl FromStr for Encoder {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "parity" => Ok(Encoder::Parity),
            "default" => Ok(Encoder::Default),
            "weighted" => Ok(Encoder::Weighted),
            _ => Err(UnknownName { name: name.into(), expected: "parity, default, weighted" }),
        }
    }
}

/// What encoding lost: sums over the weights.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// The squared differences between the rotated weights and what their codes stand for.
    pub error_sq: f64,
    /// The squares of the rotated weights.
    pub weight_sq: f64,
}

impl Loss {
    /// The squared error relative to the weights; 0 when these are all 0.
    pub fn relative(self) -> f64 {
        if self.weight_sq > 0.0 { self.error_sq / self.weight_sq } else { 0.0 }
    }
}

impl Add for Loss {
    type Output = Loss;

    fn add(self, other: Loss) -> Loss {
        Loss { error_sq: self.error_sq + other.error_sq, weight_sq: self.weight_sq + other.weight_sq }
    }
}

impl AddAssign for Loss {
    fn add_assign(&mut self, other: Loss) {
        *self = *self + other;
    }
}

impl Sum for Loss {
    fn sum<I: Iterator<Item = Loss>>(losses: I) -> Loss {
        losses.fold(Loss::default(), Add::add)
    }
}

/// Why rows cannot be encoded. Rows count from 0 to 7 within the call.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A weight is NaN or infinite.
    #[error("the weight at row {row}, column {column} is not finite")]
    NotFinite {
        /// The row.
        row: usize,
        /// The column.
        column: usize,
    },
    /// The rotated weights of a chunk are too large for a scale in fp16.
    #[error("the rotated weights of row {row}, columns {column} to {}, reach {magnitude}, too much for a scale in fp16", column + CHUNK - 1)]
    Overflow {
        /// The row.
        row: usize,
        /// The first column of the chunk.
        column: usize,
        /// The largest rotated magnitude.
        magnitude: f32,
    },
}

/// An encoder and decoder of tiles on one instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codec {
    encoder: Encoder,
    isa: Isa,
}

impl Codec {
    /// Makes a codec for the best instruction set of this machine.
    pub fn new(encoder: Encoder) -> Codec {
        Codec { encoder, isa: Isa::best() }
    }

    /// Makes a codec for a given instruction set; `None` if this machine lacks it.
    pub fn with_isa(encoder: Encoder, isa: Isa) -> Option<Codec> {
        isa.is_available().then_some(Codec { encoder, isa })
    }

    /// How it chooses scales and codes.
    pub fn encoder(&self) -> Encoder {
        self.encoder
    }

    /// What it runs on.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Encodes eight rows of `columns` weights, row after row, into `columns / 256` tiles. The rows are rotated in place.
    ///
    /// # Errors
    /// When a weight is not finite or a chunk too large; the contents of `rows` and `tiles` are then unspecified.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 256, or `rows` or `tiles` are not of the length that belongs to it.
    pub fn encode_rows(&self, rows: &mut [f32], columns: usize, tiles: &mut [Tile]) -> Result<Loss, EncodeError> {
        self.encode_rows_by(None, rows, columns, tiles)
    }

    /// Encodes as [`Codec::encode_rows`] does. With [`Encoder::Weighted`] errors of a rotated column count by its `importance` if that is given: one value for
    /// each column, of which the relations within 256 matter. The squared error of the result counts by it too, with a mean of 1 over the 256.
    ///
    /// # Errors
    /// As [`Codec::encode_rows`].
    ///
    /// # Panics
    /// As [`Codec::encode_rows`], and if there is not one importance for each column.
    pub fn encode_rows_by(
        &self,
        importance: Option<&[f32]>,
        rows: &mut [f32],
        columns: usize,
        tiles: &mut [Tile],
    ) -> Result<Loss, EncodeError> {
        check_lengths(rows.len(), columns, tiles.len());
        check_finite(rows, columns)?;
        self.fwht(rows);
        self.encode(importance, rows, columns, tiles)
    }

    /// Encodes eight rows of `columns` weights that are rotated already.
    ///
    /// # Errors
    /// As [`Codec::encode_rows`].
    ///
    /// # Panics
    /// As [`Codec::encode_rows`].
    pub fn encode_rotated(&self, rows: &[f32], columns: usize, tiles: &mut [Tile]) -> Result<Loss, EncodeError> {
        check_lengths(rows.len(), columns, tiles.len());
        check_finite(rows, columns)?;
        self.encode(None, rows, columns, tiles)
    }

    fn encode(
        self,
        importance: Option<&[f32]>,
        rows: &[f32],
        columns: usize,
        tiles: &mut [Tile],
    ) -> Result<Loss, EncodeError> {
        assert!(importance.is_none_or(|of| of.len() == columns), "one importance for each of {columns} columns");
        dispatch(self.isa, Encode { encoder: self.encoder, importance, rows, columns, tiles })
    }

    /// Decodes `columns / 256` tiles into eight rows of `columns` weights: the rotation is undone, a permutation of channels is not.
    ///
    /// # Panics
    /// If `columns` is not a multiple of 256, or `rows` or `tiles` are not of the length that belongs to it.
    pub fn decode_rows(&self, tiles: &[Tile], columns: usize, rows: &mut [f32]) {
        self.decode_rotated(tiles, columns, rows);
        self.fwht(rows);
    }

    /// Decodes tiles as [`Codec::decode_rows`] does but leaves the weights rotated.
    ///
    /// # Panics
    /// As [`Codec::decode_rows`].
    pub fn decode_rotated(&self, tiles: &[Tile], columns: usize, rows: &mut [f32]) {
        check_lengths(rows.len(), columns, tiles.len());
        dispatch(self.isa, Decode { tiles, rows, columns });
    }

    /// Rotates every 256 consecutive values in place (and, up to rounding, back): [`crate::math::hadamard::fwht256`], faster.
    ///
    /// # Panics
    /// If the number of values is not a multiple of 256.
    pub fn fwht(&self, values: &mut [f32]) {
        assert!(values.len().is_multiple_of(CHUNK), "{} values are not whole chunks of {CHUNK}", values.len());
        dispatch(self.isa, Fwht(values));
    }
}

fn check_lengths(values: usize, columns: usize, tiles: usize) {
    assert!(columns.is_multiple_of(CHUNK), "{columns} columns are not whole chunks of {CHUNK}");
    assert_eq!(values, TILE_ROWS * columns, "values for {TILE_ROWS} rows of {columns}");
    assert_eq!(tiles, columns / CHUNK, "tiles for {columns} columns");
}

fn check_finite(rows: &[f32], columns: usize) -> Result<(), EncodeError> {
    if largest_magnitude(rows).is_finite() {
        return Ok(());
    }
    let at = rows.iter().position(|value| !value.is_finite()).unwrap_or(0);
    Err(EncodeError::NotFinite { row: at / columns, column: at % columns })
}

/// The largest magnitude, or NaN if there is one: compared as bits, NaN is above infinity and that above all numbers.
fn largest_magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |max, value| max.max(value.abs().to_bits())))
}

/// The largest rotated magnitude that is encoded: a seventh of it is the largest finite fp16.
const MAX_MAGNITUDE: f32 = 7.0 * 65504.0;

/// A draft replaces the parity draft of a row only if its error is below this part: the sums are in f32, and the promise is about exact ones.
const CLEARLY_BETTER: f32 = 1.0 - 1e-5;

struct Encode<'a> {
    encoder: Encoder,
    importance: Option<&'a [f32]>,
    /// Rotated.
    rows: &'a [f32],
    columns: usize,
    tiles: &'a mut [Tile],
}

impl Kernel for Encode<'_> {
    type Output = Result<Loss, EncodeError>;

    #[inline(always)]
    fn run<V: Lanes>(self) -> Result<Loss, EncodeError> {
        let mut loss = Loss::default();
        let (mut values, mut importance) = (Turned::zeroed(), Turned::zeroed());
        for (chunk, tile) in self.tiles.iter_mut().enumerate() {
            let rows = &self.rows[chunk * CHUNK..];
            check_range(rows, self.columns, chunk * CHUNK)?;
            values.gather::<V>(rows, self.columns);
            let draft = match (self.encoder, self.importance) {
                (Encoder::Parity, _) => parity::draft::<V>(&values, &Alike),
                (Encoder::Weighted, Some(columns)) => {
                    importance.gather::<V>(&of_tile(&columns[chunk * CHUNK..][..CHUNK]), 0);
                    encode_default::<V>(&values, &importance)
                }
                (Encoder::Default | Encoder::Weighted, _) => encode_default::<V>(&values, &Alike),
            };
            *tile = draft.tile;
            loss += Loss { error_sq: total(draft.error_sq), weight_sq: total(sum_of_squares::<V>(&values)) };
        }
        Ok(loss)
    }
}

fn total(by_row: [f32; TILE_ROWS]) -> f64 {
    by_row.iter().map(|&part| f64::from(part)).sum()
}

/// Refuses a tile whose scale could not be stored. `column` is the first of the tile, for the message.
fn check_range(rows: &[f32], stride: usize, column: usize) -> Result<(), EncodeError> {
    for row in 0..TILE_ROWS {
        let magnitude = largest_magnitude(&rows[row * stride..][..CHUNK]);
        if magnitude > MAX_MAGNITUDE || magnitude.is_nan() {
            return Err(EncodeError::Overflow { row, column, magnitude });
        }
    }
    Ok(())
}

#[inline(always)]
fn encode_default<V: Lanes>(values: &Turned, importance: &impl Importance) -> Draft {
    let mut best = default::draft::<V>(values, importance);
    let parity = parity::draft::<V>(values, importance);
    for row in 0..TILE_ROWS {
        let clearly_better = best.error_sq[row] <= parity.error_sq[row] * CLEARLY_BETTER;
        if !clearly_better {
            best.take_row(&parity, row);
        }
    }
    best
}
