//! Typed launches of the kernels that calibration and smoothing use; see `launch.rs`.

use super::gpu::{Buffer, Queue};
use super::launch::{Argument, Grid, holds, int, long, parts};
use super::row_sums::{SUMMED_ROWS, SUMS};
use crate::error::DeviceError;
use crate::tcq::CHUNK;

/// Tokens of a call and their channels, whose number is a multiple of 32 for second moments, and of 256 for smoothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Tokens.
    pub tokens: usize,
    /// Channels.
    pub k: usize,
}

impl Rows {
    fn values(self) -> usize {
        self.tokens * self.k
    }
}

/// The parts that a pass over many tokens is cut into, at most.
const MAX_SLICES: usize = 64;
/// Tokens that a slice has at least.
const SLICE: usize = 64;
/// Rows and columns of a block of a second moment.
const GRAM_BLOCK: usize = 128;
/// Rows of a second moment that begin with the same column.
const GRAM_BAND: usize = 32;
/// Blocks that a grid may have in its second dimension.
const MOST_BLOCKS: usize = 65_535;

/// How many numbers the sums of channels are.
pub(super) fn statistics_len(rows: Rows) -> usize {
    parts(rows.tokens, SUMMED_ROWS) * SUMS * rows.k
}

/// How many numbers a second moment of `k` channels is.
pub(super) fn gram_len(k: usize) -> usize {
    let bands = k / GRAM_BAND;
    GRAM_BAND * bands * k - GRAM_BAND * GRAM_BAND * (bands * bands.saturating_sub(1) / 2)
}

/// Channels fill the blocks of a kernel. Panics otherwise, as it does for buffers that are too short.
#[track_caller]
fn check_channels(k: usize, block: usize) {
    assert!(k.is_multiple_of(block), "{k} channels, which is no multiple of {block}");
}

fn slices(tokens: usize) -> usize {
    parts(tokens, SLICE).clamp(1, MAX_SLICES)
}

impl Queue<'_> {
    /// Sums up channels over each 32 tokens: smallest and largest value, and sums of x, |x| and x².
    ///
    /// # Errors
    /// What the compiler or the driver says; so do all others.
    ///
    /// # Panics
    /// For more than two million tokens at once; as everywhere, for buffers that are too short.
    pub fn statistics(&self, x: &Buffer<f32>, rows: Rows, sums: &mut Buffer<f32>) -> Result<(), DeviceError> {
        holds("x", x, rows.values());
        holds("sums", sums, statistics_len(rows));
        let grid = Grid { blocks: (parts(rows.k, 256), parts(rows.tokens, SUMMED_ROWS), 1), threads: 256, shared: 0 };
        assert!(grid.blocks.1 <= MOST_BLOCKS, "{} tokens at once", rows.tokens);
        let arguments = [self.at(x), long(rows.tokens), int(rows.k), self.at(sums)];
        // SAFETY: as checked.
        unsafe { self.launch("tcq4_statistics", grid, &arguments) }
    }

    /// Products of channels, summed over the tokens: the upper triangle, in bands of 32 rows as [`super::SumRows::products`] has them.
    pub fn gram(&self, x: &Buffer<f32>, rows: Rows, gram: &mut Buffer<f32>) -> Result<(), DeviceError> {
        check_channels(rows.k, GRAM_BAND);
        holds("x", x, rows.values());
        holds("gram", gram, gram_len(rows.k));
        let blocks = parts(rows.k, GRAM_BLOCK);
        let arguments = [self.at(x), long(rows.tokens), int(rows.k), self.at(gram)];
        // SAFETY: as checked.
        unsafe { self.launch("tcq4_gram", Grid::line(blocks * (blocks + 1) / 2, 256), &arguments) }
    }

    /// Raises the bits of the largest magnitudes of channels; they begin with 0.
    pub fn channel_max(&self, x: &Buffer<f32>, rows: Rows, max_bits: &mut Buffer<u32>) -> Result<(), DeviceError> {
        check_channels(rows.k, CHUNK);
        holds("x", x, rows.values());
        holds("max", max_bits, rows.k);
        let grid = Grid { blocks: (rows.k / CHUNK, slices(rows.tokens), 1), threads: 256, shared: 0 };
        let arguments = [self.at(x), long(rows.tokens), int(rows.k), self.at(max_bits)];
        // SAFETY: as checked.
        unsafe { self.launch("tcq4_channel_max", grid, &arguments) }
    }

    /// Orders channels by falling maximum, equal ones as they lie, and gives each the largest maximum of its 128.
    pub fn smooth(
        &self,
        max_bits: &Buffer<u32>,
        k: usize,
        order: &mut Buffer<i32>,
        scales: &mut Buffer<f32>,
    ) -> Result<(), DeviceError> {
        check_channels(k, CHUNK);
        holds("max", max_bits, k);
        holds("order", order, k);
        holds("scales", scales, k);
        let (max_bits, order, scales): (Argument, _, _) = (self.at(max_bits), self.at(order), self.at(scales));
        let grid = Grid::line(k / CHUNK, 256);
        // SAFETY: as checked.
        unsafe { self.launch("tcq4_smooth_rank", grid, &[max_bits, int(k), order])? };
        // SAFETY: as checked; the order is a permutation, as the kernel before has made it.
        unsafe { self.launch("tcq4_smooth_scales", grid, &[max_bits, order, int(k), scales]) }
    }

    /// Divides channels by their scales and rounds every token to INT4; `y` gets what the codes stand for.
    pub fn smooth_round(
        &self,
        (x, scales): (&Buffer<f32>, &Buffer<f32>),
        rows: Rows,
        (codes, token_scales): (&mut Buffer<i8>, &mut Buffer<f32>),
        mut y: Option<&mut Buffer<f32>>,
    ) -> Result<(), DeviceError> {
        holds("x", x, rows.values());
        holds("scales", scales, rows.k);
        holds("codes", codes, rows.values());
        holds("token scales", token_scales, rows.tokens);
        if let Some(y) = &mut y {
            holds("y", y, rows.values());
        }
        let (x, scales, codes, tokens) = (self.at(x), self.at(scales), self.at(codes), self.at(token_scales));
        let arguments = [x, scales, int(rows.k), codes, tokens, self.maybe(y.as_deref())];
        // SAFETY: as checked.
        unsafe { self.launch("tcq4_smooth_round", Grid::line(rows.tokens, 256), &arguments) }
    }
}
