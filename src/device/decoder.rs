//! Decodes tiles on a GPU for many threads at once, to the bits of [`crate::tcq::Codec`].

use super::gpu::{Buffer, Gpu, Queue};
use super::lanes::Lanes;
use super::shapes::Shape;
use crate::error::DeviceError;
use crate::tcq::{CHUNK, TILE_ROWS, Tile};

/// Something that decodes tiles in place of [`crate::tcq::Codec`], to the same bits.
pub trait DecodeTiles: Sync + std::fmt::Debug {
    /// Decodes rows of `columns` weights as [`crate::tcq::Codec::decode_rows`] does, eight after the other. With an `order`, stored column `i` becomes column
    /// `order[i]`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If the lengths are not those of whole tiles.
    fn decode(
        &self,
        tiles: &[Tile],
        columns: usize,
        order: Option<&[u32]>,
        rows: &mut [f32],
    ) -> Result<(), DeviceError>;
}

/// A queue and its buffers, which grow as they are needed.
#[derive(Debug)]
struct Lane<'a> {
    queue: Queue<'a>,
    tiles: Buffer<Tile>,
    rows: Buffer<f32>,
}

impl<'a> Lane<'a> {
    fn new(gpu: &'a Gpu) -> Result<Self, DeviceError> {
        let queue = gpu.queue()?;
        let (tiles, rows) = (queue.room(0)?, queue.room(0)?);
        Ok(Self { queue, tiles, rows })
    }

    fn decode(
        &mut self,
        tiles: &[Tile],
        shape: Shape,
        order: Option<&[u32]>,
        rows: &mut [f32],
    ) -> Result<(), DeviceError> {
        if self.tiles.len() < tiles.len() {
            self.tiles = self.queue.room(tiles.len())?;
            self.rows = self.queue.room(rows.len())?;
        }
        self.queue.write(tiles, &mut self.tiles)?;
        let order = order.map(|order| order.iter().map(|&column| column as i32).collect::<Vec<i32>>());
        let order = order.map(|order| self.queue.upload(&order)).transpose()?;
        self.queue.dequantize((&self.tiles, order.as_ref()), false, &mut self.rows, shape)?;
        self.queue.read(&self.rows, rows)
    }
}

/// A decoder of tiles on a GPU.
#[derive(Debug)]
pub struct TileDecoder<'a> {
    gpu: &'a Gpu,
    idle: Lanes<Lane<'a>>,
}

impl<'a> TileDecoder<'a> {
    /// Loads the kernel, so that what can fail fails before the work begins.
    ///
    /// # Errors
    /// What the compiler or the driver says.
    pub fn new(gpu: &'a Gpu) -> Result<Self, DeviceError> {
        gpu.prepare("tcq4_dequantize_f32")?;
        Ok(Self { gpu, idle: Lanes::default() })
    }
}

impl DecodeTiles for TileDecoder<'_> {
    fn decode(
        &self,
        tiles: &[Tile],
        columns: usize,
        order: Option<&[u32]>,
        rows: &mut [f32],
    ) -> Result<(), DeviceError> {
        let shape = Shape { rows: rows.len() / columns.max(1), chunks: columns / CHUNK, tokens: 0 };
        let is_whole = shape.rows.is_multiple_of(TILE_ROWS) && shape.rows * shape.k() == rows.len();
        assert!(is_whole && shape.tiles() == tiles.len(), "{} values, rows of {columns} columns", rows.len());
        assert!(order.is_none_or(|order| order.len() == columns), "an order of {columns} columns");
        self.idle.with(|| Lane::new(self.gpu), |lane| lane.decode(tiles, shape, order, rows))
    }
}
