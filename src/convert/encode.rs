//! Encodes a run of rows of one tensor: read, transform, encode. Pure but for reading the mapped source; knows nothing of files written.

use bytemuck::{Zeroable, cast_slice};

use super::batches::Curvatures;
use super::compensate::{By, OutputSums};
use super::floats::to_bytes;
use crate::device::EncodeTiles;
use crate::error::{ConvertError, ModelError, Result};
use crate::gguf::{GgmlType, Source, TensorInfo};
use crate::llama;
use crate::math::products::LANES;
use crate::quant::Transform;
use crate::quant::rounding::{Rounding, flip_to_mean, round_stripes};
use crate::tcq::{CHUNK, Codec, EncodeError, Encoder, Loss, TILE_ROWS, Tile};

/// What became of a run of rows.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) loss: Loss,
    pub(super) output: OutputSums,
}

impl Encoded {
    fn exact(bytes: Vec<u8>) -> Self {
        Self { bytes, loss: Loss::default(), output: OutputSums::default() }
    }
}

/// The squared errors of a stripe of rotated rows.
fn tiles_error_sq(rows: &[f32], columns: usize, tiles: &[Tile]) -> f64 {
    let error = |(i, &weight): (usize, &f32)| {
        let (row, column) = (i / columns, i % columns);
        f64::from(weight - tiles[column / CHUNK].value(row, column % CHUNK)).powi(2)
    };
    rows.iter().enumerate().map(error).sum()
}

/// Chooses the codes of rotated rows block of columns by block; adds their output errors, and gives the squared error of the weights.
fn round_blocks(
    rows: &[f32],
    tiles: &mut [Tile],
    curvatures: &Curvatures,
    rounding: Rounding,
    output: &mut OutputSums,
) -> f64 {
    if let [(_, Some(curvature))] = &curvatures.blocks[..] {
        let rounded = round_stripes(rows, tiles, curvature, rounding);
        output.add(&rounded, curvature);
        return rounded.error_sq;
    }
    let columns: usize = curvatures.blocks.iter().map(|(width, _)| width).sum();
    let (mut first, mut error_sq) = (0, 0.0);
    for (width, curvature) in &curvatures.blocks {
        let own = first..first + width;
        let own_tiles = first / CHUNK..(first + width) / CHUNK;
        first += width;
        let values: Vec<f32> = rows.chunks_exact(columns).flat_map(|row| &row[own.clone()]).copied().collect();
        let stripes = tiles.chunks_exact_mut(columns / CHUNK);
        let mut part: Vec<Tile> = stripes.flat_map(|stripe| stripe[own_tiles.clone()].iter().copied()).collect();
        if let Some(curvature) = curvature {
            let rounded = round_stripes(&values, &mut part, curvature, rounding);
            error_sq += rounded.error_sq;
            output.add(&rounded, curvature);
        } else {
            let stripes = values.chunks_exact(TILE_ROWS * width).zip(part.chunks_exact(width / CHUNK));
            error_sq += stripes.map(|(rows, tiles)| tiles_error_sq(rows, *width, tiles)).sum::<f64>();
        }
        for (stripe, part) in tiles.chunks_exact_mut(columns / CHUNK).zip(part.chunks_exact(width / CHUNK)) {
            stripe[own_tiles.clone()].copy_from_slice(part);
        }
    }
    error_sq
}

/// A run of rows of one tensor and what becomes of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowRun<'a> {
    pub(super) source: &'a Source,
    pub(super) tensor: &'a TensorInfo,
    pub(super) transform: Option<&'a Transform>,
    pub(super) to: GgmlType,
    /// How much each column counts in a type that ggml writes; all alike if nothing is known.
    pub(super) importance: Option<&'a [f32]>,
    /// First row, counted over all matrices of the tensor.
    pub(super) first: u64,
    /// Number of rows; a multiple of 8 where `to` is TCQ4.
    pub(super) rows: u64,
}

impl RowRun<'_> {
    /// These rows in their new type, and their errors where they are measured (TCQ4). TCQ4 codes are the nearest, or chosen `by` more.
    /// Tiles are encoded on a `device` if there is one; their bytes are the same.
    pub(super) fn encode(
        &self,
        codec: Codec,
        device: Option<&dyn EncodeTiles>,
        by: Option<&By<'_>>,
    ) -> Result<Encoded> {
        if self.to == self.tensor.ty && self.transform.is_none() {
            if self.to.is_float() {
                self.check_finite(&self.values()?)?;
            }
            return Ok(Encoded::exact(self.source_bytes().to_vec()));
        }
        let mut values = self.values()?;
        if self.to == GgmlType::TCQ4_K32 {
            return self.encode_tiles((codec, device), &mut values, by);
        }
        self.check_finite(&values)?;
        Ok(Encoded::exact(self.encode_plain(&values)?))
    }

    /// These rows as they lie in the source (no transform reorders rows here).
    fn source_bytes(&self) -> &[u8] {
        let data = self.source.data(self.tensor);
        let row = data.len() / self.tensor.rows() as usize;
        &data[self.first as usize * row..(self.first + self.rows) as usize * row]
    }

    fn values(&self) -> Result<Vec<f32>> {
        let columns = self.tensor.columns() as usize;
        let mut values = vec![0.0; columns * self.rows as usize];
        match self.transform {
            Some(transform) => read_transformed(self.source, self.tensor, transform, self.first, &mut values)?,
            None => read_rows(self.source, self.tensor, self.first, &mut values)?,
        }
        Ok(values)
    }

    fn encode_tiles(
        &self,
        (codec, device): (Codec, Option<&dyn EncodeTiles>),
        values: &mut [f32],
        by: Option<&By<'_>>,
    ) -> Result<Encoded> {
        let columns = self.tensor.columns() as usize;
        let mut tiles = vec![Tile::zeroed(); self.rows as usize / TILE_ROWS * columns / CHUNK];
        let importance = by.filter(|_| codec.encoder() == Encoder::Weighted).and_then(By::importance);
        let on_device = device.map(|device| device.encode(codec.encoder(), values, columns, &mut tiles)).transpose()?;
        let mut loss = match on_device.flatten() {
            Some(loss) => {
                if by.is_some() {
                    codec.fwht(values); // the codec leaves its rows rotated, the device does not
                }
                loss
            }
            None => self.encode_stripes(codec, importance.as_deref(), values, &mut tiles)?,
        };
        let mut output = OutputSums::default();
        if let Some(by) = by {
            let (sums, error_sq) = self.choose(by, values, &mut tiles);
            (output, loss.error_sq) = (sums, error_sq);
        }
        Ok(Encoded { bytes: cast_slice(&tiles).to_vec(), loss, output })
    }

    /// Encodes stripe after stripe on this thread; the rows are rotated in place.
    fn encode_stripes(
        &self,
        codec: Codec,
        importance: Option<&[f32]>,
        values: &mut [f32],
        tiles: &mut [Tile],
    ) -> Result<Loss> {
        let columns = self.tensor.columns() as usize;
        let stripes = values.chunks_exact_mut(TILE_ROWS * columns).zip(tiles.chunks_exact_mut(columns / CHUNK));
        let mut loss = Loss::default();
        for (stripe, (rows, tiles)) in stripes.enumerate() {
            loss += codec
                .encode_rows_by(importance, rows, columns, tiles)
                .map_err(|e| self.defect(&e, (stripe * TILE_ROWS) as u64))?;
        }
        Ok(loss)
    }

    /// Chooses the codes of rotated rows anew; gives the output errors and the squared error of the weights.
    fn choose(&self, by: &By<'_>, values: &[f32], tiles: &mut [Tile]) -> (OutputSums, f64) {
        let columns = self.tensor.columns() as usize;
        let (mut output, mut error_sq) = (OutputSums::default(), 0.0);
        let together = if matches!(by, By::Curvature(..)) { LANES } else { TILE_ROWS };
        let parts = values.chunks(together * columns).zip(tiles.chunks_mut(together / TILE_ROWS * columns / CHUNK));
        for (part, (rows, tiles)) in parts.enumerate() {
            match by {
                By::Curvature(curvatures, rounding) => {
                    error_sq += round_blocks(rows, tiles, curvatures, *rounding, &mut output);
                }
                By::Means(means) => {
                    let (mean, open) = means.of_row(self.first + (part * together) as u64);
                    for row in flip_to_mean(rows, tiles, mean, open) {
                        output.add_flipped(&row);
                    }
                    error_sq += tiles_error_sq(rows, columns, tiles);
                }
            }
        }
        (output, error_sq)
    }

    /// Values of these rows in another type than TCQ4.
    pub(super) fn encode_as(&self, to: GgmlType, values: &[f32]) -> Result<Vec<u8>> {
        Self { to, ..*self }.encode_plain(values)
    }

    fn encode_plain(&self, values: &[f32]) -> Result<Vec<u8>> {
        if self.to.is_float() {
            let out_of_range = || {
                let path = self.source.path().to_path_buf();
                ConvertError::OutOfRange { path, tensor: self.tensor.name.clone(), ty: self.to.to_string() }
            };
            return Ok(to_bytes(values, self.to).ok_or_else(out_of_range)?);
        }
        let columns = self.tensor.columns();
        let row = self.to.row_bytes(columns).unwrap_or(0);
        let mut bytes = vec![0; (row * self.rows) as usize];
        llama::quantize_rows(self.to.0, values, columns as usize, self.importance, &mut bytes)?;
        Ok(bytes)
    }

    fn check_finite(&self, values: &[f32]) -> Result<()> {
        let Some(at) = values.iter().position(|v| !v.is_finite()) else { return Ok(()) };
        let columns = self.tensor.columns();
        let here = || self.not_finite(self.first + at as u64 / columns, at as u64 % columns, values[at]);
        Err(self.defect_of_source().unwrap_or_else(here))
    }

    /// The first weight of the source tensor that is not finite: what a transform has moved is told where the user finds it.
    fn defect_of_source(&self) -> Option<crate::Error> {
        let mut values = vec![0.0; self.tensor.columns() as usize];
        (0..self.tensor.rows()).find_map(|row| {
            read_rows(self.source, self.tensor, row, &mut values).ok()?;
            let column = values.iter().position(|v| !v.is_finite())?;
            Some(self.not_finite(row, column as u64, values[column]))
        })
    }

    fn not_finite(&self, row: u64, column: u64, value: f32) -> crate::Error {
        let path = self.source.path().to_path_buf();
        ModelError::NotFinite { path, tensor: self.tensor.name.clone(), row, column, value }.into()
    }

    pub(super) fn defect(&self, error: &EncodeError, stripe_row: u64) -> crate::Error {
        let row = |row: usize| self.first + stripe_row + row as u64;
        match *error {
            EncodeError::NotFinite { row: r, column } => {
                // Finite in the source: a scale has carried it beyond f32.
                let here = || self.not_finite(row(r), column as u64, f32::INFINITY);
                self.defect_of_source().unwrap_or_else(here)
            }
            EncodeError::Overflow { row: r, column, magnitude } => {
                let path = self.source.path().to_path_buf();
                let tensor = self.tensor.name.clone();
                ConvertError::TooLarge { path, tensor, row: row(r), column: column as u64, magnitude }.into()
            }
        }
    }
}

/// Reads rows of any type as floats, `first` counted over all matrices of the tensor; other types than F16, BF16 and F32 are decoded by ggml.
///
/// # Errors
/// Types that ggml cannot decode, or any but those three in a build without llama.cpp.
pub fn read_rows(source: &Source, tensor: &TensorInfo, first: u64, out: &mut [f32]) -> Result<()> {
    if tensor.ty.is_float() {
        return source.read_rows(tensor, first, out);
    }
    let row = tensor.bytes as usize / tensor.rows() as usize;
    let columns = tensor.columns() as usize;
    let bytes = &source.data(tensor)[first as usize * row..(first as usize + out.len() / columns) * row];
    llama::dequantize_rows(tensor.ty.0, bytes, columns, out)
}

/// Reads the rows that `transform` makes of a tensor, from row `first` of the result on.
pub(super) fn read_transformed(
    source: &Source,
    tensor: &TensorInfo,
    transform: &Transform,
    first: u64,
    out: &mut [f32],
) -> Result<()> {
    let columns = tensor.columns() as usize;
    transform.apply(columns, first as usize, out, |row, into| read_rows(source, tensor, row as u64, into))
}
