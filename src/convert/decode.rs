//! Reads rows of TCQ4 tensors back as plain weights, in either of the fork's two formats; rotations are undone, permutations only if asked.

use bytemuck::{AnyBitPattern, pod_read_unaligned};

use crate::device::DecodeTiles;
use crate::error::{ConvertError, Error, Result};
use crate::gguf::{GgmlType, Source, TensorInfo};
use crate::math::Permutation;
use crate::tcq::{CHUNK, Codec, EarlyBlock, Layout, ROW_BYTES, TILE_ROWS, Tile, detect_layout, early, validate_tile};

/// One TCQ4 tensor of a file, ready to be decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct TcqTensor<'a> {
    source: &'a Source,
    tensor: &'a TensorInfo,
    layout: Layout,
    codec: Codec,
}

impl<'a> TcqTensor<'a> {
    /// Looks at the bytes of `tensor` and finds out their format.
    ///
    /// # Errors
    /// Bytes that are neither tiles nor row blocks.
    pub(super) fn open(source: &'a Source, tensor: &'a TensorInfo, codec: Codec) -> Result<Self> {
        let layout = match tensor.ty {
            GgmlType::TCQ4_K32 => Some(Layout::Final),
            _ => detect_layout(source.data(tensor)),
        };
        source.release(tensor, 0..tensor.bytes as usize);
        let fail = || ConvertError::Damaged {
            path: source.path().to_path_buf(),
            tensor: tensor.name.clone(),
            problem: "its bytes are neither tiles nor row blocks of TCQ4".into(),
        };
        Ok(Self { source, tensor, layout: layout.ok_or_else(fail)?, codec })
    }

    /// Decodes rows `first..first + rows` (both multiples of 8) into spatial weights, columns in the order of the file.
    ///
    /// # Errors
    /// A scale that is not finite.
    pub(super) fn rows(&self, first: u64, rows: u64, out: &mut [f32]) -> Result<()> {
        let columns = self.tensor.columns() as usize;
        let row_bytes = columns / CHUNK * ROW_BYTES;
        let bytes = &self.source.data(self.tensor)[first as usize * row_bytes..(first + rows) as usize * row_bytes];
        let stripe_bytes = row_bytes * TILE_ROWS;
        for (stripe, (bytes, out)) in
            bytes.chunks_exact(stripe_bytes).zip(out.chunks_exact_mut(columns * TILE_ROWS)).enumerate()
        {
            match self.layout {
                Layout::Final => {
                    let tiles: Vec<Tile> = collect(bytes);
                    self.check(&tiles, first + (stripe * TILE_ROWS) as u64)?;
                    self.codec.decode_rows(&tiles, columns, out);
                }
                Layout::Early => {
                    let blocks: Vec<EarlyBlock> = collect(bytes);
                    self.check_early(&blocks, first + (stripe * TILE_ROWS) as u64)?;
                    early::decode_rows(&blocks, columns, out);
                }
            }
        }
        Ok(())
    }

    /// Decodes rows as [`Self::rows`] does, on a `device` if there is one, and puts columns back where they were before `permutation` gathered them.
    ///
    /// # Errors
    /// As [`Self::rows`]; what the device says.
    pub(super) fn spatial_rows(
        &self,
        (first, rows): (u64, u64),
        permutation: Option<&Permutation>,
        device: Option<&dyn DecodeTiles>,
        out: &mut [f32],
    ) -> Result<()> {
        let Some(device) = device.filter(|_| self.layout == Layout::Final) else {
            self.rows(first, rows, out)?;
            if let Some(permutation) = permutation {
                undo_permutation(permutation, out);
            }
            return Ok(());
        };
        let mut tiles = Vec::new();
        for stripe in (first..first + rows).step_by(TILE_ROWS) {
            tiles.extend(self.stripe(stripe)?);
        }
        let columns = self.tensor.columns() as usize;
        Ok(device.decode(&tiles, columns, permutation.map(Permutation::indices), out)?)
    }

    /// The tiles of the eight rows from `first` (a multiple of 8) on, one for each 256 columns; row blocks are turned into tiles.
    ///
    /// # Errors
    /// A scale that is not finite.
    pub(super) fn stripe(&self, first: u64) -> Result<Vec<Tile>> {
        let chunks = self.tensor.columns() as usize / CHUNK;
        let row_bytes = chunks * ROW_BYTES;
        let bytes = &self.source.data(self.tensor)[first as usize * row_bytes..][..TILE_ROWS * row_bytes];
        if self.layout == Layout::Final {
            let tiles: Vec<Tile> = collect(bytes);
            self.check(&tiles, first)?;
            return Ok(tiles);
        }
        let blocks: Vec<EarlyBlock> = collect(bytes);
        self.check_early(&blocks, first)?;
        let tile = |chunk: usize| early::to_tile(&std::array::from_fn(|row| blocks[row * chunks + chunk]));
        Ok((0..chunks).map(tile).collect())
    }

    fn check(&self, tiles: &[Tile], row: u64) -> Result<()> {
        let Some((index, defect)) =
            tiles.iter().enumerate().find_map(|(i, tile)| Some((i, validate_tile(tile).err()?)))
        else {
            return Ok(());
        };
        Err(self.damaged(format!("tile at row {row}, column {}: {defect}", index * CHUNK)))
    }

    fn check_early(&self, blocks: &[EarlyBlock], row: u64) -> Result<()> {
        let unsound = |block: &EarlyBlock| !(block.scale.is_finite() && block.zero.is_finite());
        let Some(index) = blocks.iter().position(unsound) else { return Ok(()) };
        let (chunks, EarlyBlock { scale, zero, .. }) = (self.tensor.columns() as usize / CHUNK, blocks[index]);
        let (row, column) = (row + (index / chunks) as u64, index % chunks * CHUNK);
        Err(self.damaged(format!("row block at row {row}, column {column} has scale {scale} and offset {zero}")))
    }

    fn damaged(&self, problem: String) -> Error {
        let (path, tensor) = (self.source.path().to_path_buf(), self.tensor.name.clone());
        ConvertError::Damaged { path, tensor, problem }.into()
    }
}

/// Copies bytes of any alignment into values.
fn collect<T: AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(pod_read_unaligned).collect()
}

/// Puts the columns of decoded rows back where they were before `permutation` gathered them.
fn undo_permutation(permutation: &Permutation, rows: &mut [f32]) {
    let inverse = permutation.inverse();
    let mut spatial = vec![0.0; inverse.len()];
    for row in rows.chunks_exact_mut(inverse.len()) {
        inverse.gather(row, &mut spatial);
        row.copy_from_slice(&spatial);
    }
}
