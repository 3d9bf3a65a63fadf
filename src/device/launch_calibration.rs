//! Typed launches of the kernels that calibration and smoothing use; see `launch.rs`.

use super::gpu::{Buffer, Queue};
use super::launch::{Argument, Grid, holds, int, long, parts};
use crate::error::DeviceError;
use crate::tcq::CHUNK;

/// Tokens of a call and their channels, whose number is a multiple of 256 (of 128 for second moments).
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

/// Channels fill the blocks of a kernel. Panics otherwise, as it does for buffers that are too short.
#[track_caller]
fn check_channels(k: usize, block: usize) {
    assert!(k.is_multiple_of(block), "{k} channels, which is no multiple of {block}");
}

fn slices(tokens: usize) -> usize {
    parts(tokens, SLICE).clamp(1, MAX_SLICES)
}

impl Queue<'_> {
    /// Adds to what is known of channels: `sums` are sums and sums of squares, `ranges` the largest magnitudes, minima and maxima.
    /// They begin with 0, 0 and 0, infinity, minus infinity.
    ///
    /// # Errors
    /// What the compiler or the driver says; so do all others.
    pub fn statistics(
        &self,
        x: &Buffer<f32>,
        rows: Rows,
        sums: &mut Buffer<f64>,
        ranges: &mut Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let (k, slices) = (rows.k, slices(rows.tokens));
        check_channels(k, CHUNK);
        holds("x", x, rows.values());
        holds("sums", sums, 2 * k);
        holds("ranges", ranges, 3 * k);
        let partial_sums = self.room::<f64>(slices * 2 * k)?;
        let partial_ranges = self.room::<f32>(slices * 3 * k)?;
        let (sums, ranges) = (self.at(sums), self.at(ranges));
        let (partial_sums, partial_ranges) = (self.at(&partial_sums), self.at(&partial_ranges));
        let grid = Grid { blocks: (k / CHUNK, slices, 1), threads: 256, shared: 0 };
        let arguments = [self.at(x), long(rows.tokens), int(k), partial_sums, partial_ranges];
        // SAFETY: lengths as checked and made; memory that goes is freed in the order of the queue.
        unsafe { self.launch("tcq4_statistics", grid, &arguments)? };
        let arguments = [partial_sums, partial_ranges, int(slices), int(k), sums, ranges];
        // SAFETY: as above.
        unsafe { self.launch("tcq4_statistics_merge", Grid::line(k / CHUNK, 256), &arguments) }
    }

    /// Adds the products of channels to the lower triangle of `gram` (and to all of the 128 x 128 blocks on its diagonal).
    pub fn gram(&self, x: &Buffer<f32>, rows: Rows, gram: &mut Buffer<f64>) -> Result<(), DeviceError> {
        check_channels(rows.k, GRAM_BLOCK);
        holds("x", x, rows.values());
        holds("gram", gram, rows.k * rows.k);
        let blocks = rows.k / GRAM_BLOCK;
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
