//! Encodes rows of weights on a GPU for many threads at once: each has a queue of its own while it works.
//!
//! Gives exactly the tiles and losses of [`crate::tcq::Codec`]; rows that cannot be encoded are left to it, for it says what is wrong with them.

use super::gpu::{Buffer, Gpu, Queue};
use super::lanes::Lanes;
use super::launch::Encoded;
use super::shapes::Shape;
use crate::error::DeviceError;
use crate::tcq::{CHUNK, Encoder, Loss, TILE_ROWS, Tile};

/// Rows with weights above this may have rotated weights that no scale in fp16 stands for: 256 of them add up to 16 times as much, and
/// 7 * 65504 is the limit.
const SAFE: f32 = 28_000.0;

/// A queue and its buffers, which grow as they are needed.
#[derive(Debug)]
struct Lane<'a> {
    queue: Queue<'a>,
    rows: Buffer<f32>,
    encoded: Encoded,
    losses: Vec<[f32; 2 * TILE_ROWS]>,
    defects: Vec<i32>,
}

impl<'a> Lane<'a> {
    fn new(gpu: &'a Gpu) -> Result<Self, DeviceError> {
        let queue = gpu.queue()?;
        let rows = queue.room(0)?;
        let encoded = queue.room_for_encoded(0)?;
        Ok(Self { queue, rows, encoded, losses: Vec::new(), defects: Vec::new() })
    }

    /// Encodes; gives the losses of the tiles, or nothing if one of them has a defect.
    fn encode(
        &mut self,
        encoder: Encoder,
        rows: &[f32],
        shape: Shape,
        tiles: &mut [Tile],
    ) -> Result<Option<&[[f32; 2 * TILE_ROWS]]>, DeviceError> {
        if self.rows.len() < rows.len() {
            self.rows = self.queue.room(rows.len())?;
            self.encoded = self.queue.room_for_encoded(shape.tiles())?;
        }
        self.queue.write(rows, &mut self.rows)?;
        self.queue.encode(encoder, (&self.rows, None), false, &mut self.encoded, shape)?;
        self.losses.resize(shape.tiles(), [0.0; 2 * TILE_ROWS]);
        self.defects.resize(shape.tiles(), 0);
        self.queue.read(&self.encoded.tiles, tiles)?;
        self.queue.read(&self.encoded.losses, &mut self.losses)?;
        self.queue.read(&self.encoded.defects, &mut self.defects)?;
        Ok(self.defects.iter().all(|&defect| defect == 0).then_some(&self.losses[..]))
    }
}

/// Something that encodes tiles in place of [`crate::tcq::Codec`], with the same bytes and losses.
pub trait EncodeTiles: Sync {
    /// Encodes rows of `columns` weights, eight after the other as [`crate::tcq::Codec::encode_rows`] does; the rows stay as they are. Nothing for
    /// rows that the codec has to look at, since they may have no tiles.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If the lengths are not those of whole tiles.
    fn encode(
        &self,
        encoder: Encoder,
        rows: &[f32],
        columns: usize,
        tiles: &mut [Tile],
    ) -> Result<Option<Loss>, DeviceError>;
}

/// An encoder of tiles on a GPU.
#[derive(Debug)]
pub struct TileEncoder<'a> {
    gpu: &'a Gpu,
    idle: Lanes<Lane<'a>>,
}

impl<'a> TileEncoder<'a> {
    /// Loads the kernel of `encoder`, so that what can fail fails before the work begins.
    ///
    /// # Errors
    /// What the compiler or the driver says.
    pub fn new(gpu: &'a Gpu, encoder: Encoder) -> Result<Self, DeviceError> {
        gpu.prepare(&format!("tcq4_encode_{encoder}_f32"))?;
        Ok(Self { gpu, idle: Lanes::default() })
    }
}

impl EncodeTiles for TileEncoder<'_> {
    fn encode(
        &self,
        encoder: Encoder,
        rows: &[f32],
        columns: usize,
        tiles: &mut [Tile],
    ) -> Result<Option<Loss>, DeviceError> {
        let shape = Shape { rows: rows.len() / columns.max(1), chunks: columns / CHUNK, tokens: 0 };
        assert_eq!((shape.rows * shape.k(), shape.tiles()), (rows.len(), tiles.len()), "rows of {columns} columns");
        if !rows.iter().all(|weight| weight.abs() <= SAFE) {
            return Ok(None);
        }
        let sums = |losses: &[[f32; 2 * TILE_ROWS]]| sum(losses, shape.chunks);
        self.idle.with(|| Lane::new(self.gpu), |lane| Ok(lane.encode(encoder, rows, shape, tiles)?.map(sums)))
    }
}

/// Adds up the losses of tiles in the order of the CPU: rows, tiles, stripes.
fn sum(losses: &[[f32; 2 * TILE_ROWS]], chunks: usize) -> Loss {
    let total = |rows: &[f32]| rows.iter().map(|&part| f64::from(part)).sum();
    let of_tile = |parts: &[f32; 2 * TILE_ROWS]| Loss {
        error_sq: total(&parts[..TILE_ROWS]),
        weight_sq: total(&parts[TILE_ROWS..]),
    };
    losses.chunks(chunks).map(|stripe| stripe.iter().map(of_tile).sum::<Loss>()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcq::Codec;
    use bytemuck::Zeroable;

    #[test]
    fn weights_below_the_bound_can_always_be_encoded() {
        let mut rows = vec![SAFE; TILE_ROWS * CHUNK];
        let mut tiles = [Tile::zeroed()];
        for encoder in [Encoder::Parity, Encoder::Default] {
            assert!(Codec::new(encoder).encode_rows(&mut rows, CHUNK, &mut tiles).is_ok());
            rows.fill(SAFE);
        }
        rows.fill(SAFE * 1.03);
        assert!(Codec::new(Encoder::Parity).encode_rows(&mut rows, CHUNK, &mut tiles).is_err());
    }

    #[test]
    fn losses_are_added_in_the_order_of_the_codec() {
        let columns = 3 * CHUNK;
        let mut rows: Vec<f32> = (0..16 * columns).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
        let mut tiles = vec![Tile::zeroed(); 6];
        let codec = Codec::new(Encoder::Parity);
        let mut expected = Loss::default();
        let mut parts = Vec::new();
        for (rows, tiles) in rows.chunks_exact_mut(8 * columns).zip(tiles.chunks_exact_mut(3)) {
            expected += codec.encode_rows(rows, columns, tiles).unwrap();
            for chunk in 0..3 {
                let part = |row: &[f32]| row[CHUNK * chunk..CHUNK * (chunk + 1)].to_vec();
                let own: Vec<f32> = rows.chunks_exact(columns).flat_map(part).collect();
                let loss = codec.encode_rotated(&own, CHUNK, &mut tiles[chunk..=chunk]).unwrap();
                // Only the sum over the rows is known here; the kernel gives the parts.
                let mut tile = [0.0; 16];
                (tile[0], tile[8]) = (loss.error_sq as f32, loss.weight_sq as f32);
                parts.push(tile);
            }
        }
        let found = sum(&parts, 3);
        assert!((found.error_sq / expected.error_sq - 1.0).abs() < 1e-6);
        assert!((found.weight_sq / expected.weight_sq - 1.0).abs() < 1e-6);
    }
}
