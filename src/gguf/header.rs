//! Parses everything before the tensor data of one file. Sizes and places of the tensors are checked later, in `place`.

use super::cursor::Cursor;
use super::limits::{
    DEFAULT_ALIGNMENT, MAX_ALIGNMENT, MAX_KEYS, MAX_TENSORS, MIN_ALIGNMENT, MIN_KEY_VALUE_BYTES, MIN_TENSOR_BYTES,
};
use super::metadata::Metadata;
use super::names::{first_duplicate, sorted_by_name};
use super::tensor::TensorInfo;
use super::value::Value;
use crate::error::GgufError;

/// The magic of GGUF files.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub(super) const VERSION: u32 = 3;
/// The key of the alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// What stands before the data of a file.
pub(super) struct Header {
    /// 2 or 3.
    pub(super) version: u32,
    /// All keys.
    pub(super) metadata: Metadata,
    /// The tensors, with offsets relative to `data_start` and without sizes.
    pub(super) tensors: Vec<TensorInfo>,
    /// The alignment of the tensors' data.
    pub(super) alignment: u64,
    /// Where the data section starts in the file.
    pub(super) data_start: u64,
}

impl Header {
    /// Parses the header at the start of `bytes`, the whole file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Header, GgufError> {
        let mut cursor = Cursor::new(bytes);
        let version = read_version(&mut cursor)?;
        let tensor_count = cursor.count("tensors", MIN_TENSOR_BYTES, MAX_TENSORS, 8)?;
        let key_count = cursor.count("keys", MIN_KEY_VALUE_BYTES, MAX_KEYS, 0)?;
        let metadata = Metadata::read(&mut cursor, key_count)?;
        let alignment = alignment(&metadata)?;
        let tensors = read_tensors(&mut cursor, tensor_count)?;
        let data_start = cursor.offset().next_multiple_of(alignment);
        Ok(Header { version, metadata, tensors, alignment, data_start })
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    if cursor.left() == 0 {
        return Err(GgufError::Empty);
    }
    let found = cursor.take(cursor.left().min(4), "the magic")?;
    if !MAGIC.starts_with(found) {
        return Err(GgufError::Magic { found: found.to_vec() });
    }
    if found.len() < MAGIC.len() {
        return Err(GgufError::Truncated { what: "the magic", offset: 0, needed: 4, left: found.len() as u64 });
    }
    match cursor.u32("the version")? {
        version @ 2..=3 => Ok(version),
        1 => Err(GgufError::VersionOne),
        found if (1..=3).contains(&found.swap_bytes()) => Err(GgufError::BigEndian { version: found.swap_bytes() }),
        found => Err(GgufError::Version { found }),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(found)) => check_alignment(u64::from(found)),
        Some(other) => Err(GgufError::AlignmentType { found: other.ty().name() }),
    }
}

/// Checks that an alignment can be used.
pub(super) fn check_alignment(found: u64) -> Result<u64, GgufError> {
    if found.is_power_of_two() && (MIN_ALIGNMENT..=MAX_ALIGNMENT).contains(&found) {
        return Ok(found);
    }
    Err(GgufError::Alignment { found, limit: MAX_ALIGNMENT })
}

fn read_tensors(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<TensorInfo>, GgufError> {
    let mut tensors = Vec::with_capacity(count as usize);
    for index in 0..count {
        tensors.push(TensorInfo::read(cursor, index)?);
    }
    check_names(&tensors)?;
    Ok(tensors)
}

/// Checks that no two tensors have one name; gives the index sorted by name.
pub(super) fn check_names(tensors: &[TensorInfo]) -> Result<Vec<u32>, GgufError> {
    let order = sorted_by_name(tensors.len(), |index| &tensors[index].name);
    match first_duplicate(&order, |index| &tensors[index].name) {
        None => Ok(order),
        Some(index) => Err(GgufError::Duplicate { what: "tensor", name: tensors[index].name.clone() }),
    }
}
