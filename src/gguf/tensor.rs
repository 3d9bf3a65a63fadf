//! Descriptions of tensors: name, shape, type and place. The data itself stays in the file.

use super::cursor::Cursor;
use super::limits::{MAX_DIMS, MAX_ELEMENTS, MAX_NAME_BYTES};
use super::types::{Dialect, GgmlType};
use crate::error::GgufError;

/// A tensor of a file, checked against the file's length. Belongs to the [`super::Source`] that gave it.
#[derive(Clone, PartialEq, Debug)]
pub struct TensorInfo {
    /// The name, at most 63 bytes.
    pub name: String,
    /// One to four dimensions in ggml's order: `dims[0]` is the number of columns, the length of a row in memory.
    pub dims: Vec<u64>,
    /// The type.
    pub ty: GgmlType,
    /// The bytes of the data; 0 where the type is unknown.
    pub bytes: u64,
    /// Which shard holds the data.
    pub(super) shard: u32,
    /// Where the data starts: within the data section while a file is parsed, within the file afterwards.
    pub(super) offset: u64,
}

/// A tensor that is to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// The name, at most 63 bytes.
    pub name: String,
    /// One to four dimensions in ggml's order.
    pub dims: Vec<u64>,
    /// The type.
    pub ty: GgmlType,
}

impl TensorInfo {
    /// Gives the number of columns: the length of a row in memory.
    pub fn columns(&self) -> u64 {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Gives the number of rows over all matrices: the product of all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }

    /// Gives the number of matrices (experts): the product of the dimensions from the third.
    pub fn matrices(&self) -> u64 {
        self.dims.iter().skip(2).product()
    }

    /// Gives the number of values.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Tells whether the size of the type is known, so that the data can be read.
    pub fn is_known(&self) -> bool {
        self.bytes > 0
    }

    /// Gives the index of the file that holds the data.
    pub fn shard(&self) -> usize {
        self.shard as usize
    }

    /// Gives the offset of the data within its file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Describes the same tensor for an output.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), dims: self.dims.clone(), ty: self.ty }
    }

    /// Reads one description; `bytes` is still 0 and `offset` relative to the data section.
    pub(super) fn read(cursor: &mut Cursor<'_>, index: u64) -> Result<TensorInfo, GgufError> {
        let name = cursor.name("tensor name", index, MAX_NAME_BYTES)?;
        let dims = read_dims(cursor, name)?;
        let ty = GgmlType(cursor.u32("a tensor type")?);
        let offset = cursor.u64("a tensor offset")?;
        Ok(TensorInfo { name: name.to_owned(), dims, ty, bytes: 0, shard: 0, offset })
    }
}

impl TensorSpec {
    /// Appends the description as it stands in a file, for data at `offset` within the data section.
    pub(super) fn write(&self, offset: u64, out: &mut Vec<u8>) {
        out.extend((self.name.len() as u64).to_le_bytes());
        out.extend(self.name.as_bytes());
        out.extend((self.dims.len() as u32).to_le_bytes());
        for dim in &self.dims {
            out.extend(dim.to_le_bytes());
        }
        out.extend(self.ty.0.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }

    /// Gives how many bytes [`TensorSpec::write`] appends.
    pub(super) fn written_bytes(&self) -> u64 {
        8 + self.name.len() as u64 + 4 + 8 * self.dims.len() as u64 + 4 + 8
    }
}

/// Reads the dimensions of a tensor. A scalar (no dimension) is read as one dimension of 1.
fn read_dims(cursor: &mut Cursor<'_>, name: &str) -> Result<Vec<u64>, GgufError> {
    let offset = cursor.offset();
    let count = u64::from(cursor.u32("a dimension count")?);
    if count > MAX_DIMS {
        return Err(GgufError::Limit { what: "a dimension count", found: count, limit: MAX_DIMS, offset });
    }
    let bytes = cursor.take(8 * count, "the dimensions of a tensor")?;
    let mut dims = Vec::with_capacity(count.max(1) as usize);
    dims.extend(bytes.chunks_exact(8).map(|dim| dim.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))));
    if dims.is_empty() {
        dims.push(1);
    }
    check_dims(name, &dims)?;
    Ok(dims)
}

/// Checks that no dimension is 0 and that ggml can count the elements.
pub(super) fn check_dims(name: &str, dims: &[u64]) -> Result<u64, GgufError> {
    if dims.contains(&0) {
        return Err(GgufError::ZeroDimension { tensor: name.to_owned(), dims: dims.to_vec() });
    }
    let elements = dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let elements = elements.filter(|elements| *elements <= MAX_ELEMENTS);
    elements.ok_or_else(|| GgufError::TooLarge { tensor: name.to_owned(), dims: dims.to_vec() })
}

/// Gives the bytes of a tensor's data; `None` where the type is unknown. The rows of a matrix of TCQ4_K32 come in tiles of eight.
pub(super) fn data_bytes(name: &str, dims: &[u64], ty: GgmlType, dialect: Dialect) -> Result<Option<u64>, GgufError> {
    let elements = check_dims(name, dims)?;
    let Some(layout) = dialect.layout(ty) else { return Ok(None) };
    let ragged =
        |axis, found, block| GgufError::Ragged { tensor: name.to_owned(), ty: ty.to_string(), axis, found, block };
    let columns = dims.first().copied().unwrap_or(1);
    if columns % layout.block != 0 {
        return Err(ragged("columns", columns, layout.block));
    }
    let rows = dims.get(1).copied().unwrap_or(1);
    if ty == GgmlType::TCQ4_K32 && rows % 8 != 0 {
        return Err(ragged("rows", rows, 8));
    }
    let bytes = (elements / layout.block).checked_mul(layout.bytes);
    bytes.map(Some).ok_or_else(|| GgufError::TooLarge { tensor: name.to_owned(), dims: dims.to_vec() })
}
