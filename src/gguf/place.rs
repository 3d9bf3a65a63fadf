//! Gives the tensors of one file their sizes and absolute places, and proves that these are aligned, in the file, disjoint and without holes.
//! After this step a tensor's data is a slice of the file that cannot be out of range.

use super::tensor::{TensorInfo, data_bytes};
use super::types::Dialect;
use crate::error::GgufError;

/// What `place` needs to know of the file.
#[derive(Copy, Clone)]
pub(super) struct Section {
    /// Where the data section starts.
    pub(super) start: u64,
    /// The alignment of the tensors.
    pub(super) alignment: u64,
    /// The length of the file.
    pub(super) length: u64,
}

/// Checks all tensors of a file and fills in their sizes; offsets become absolute. On an error, nothing is changed.
///
/// A file may list its tensors in another order than their data (ggml is stricter); the last tensor's padding may be missing.
pub(super) fn place(tensors: &mut [TensorInfo], section: Section, dialect: Dialect) -> Result<(), GgufError> {
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_unstable_by_key(|index| (tensors[*index as usize].offset, *index));
    check_gaps(tensors, &order, section.alignment, dialect)?;
    for tensor in &*tensors {
        check_end(tensor, section, dialect)?;
    }
    for tensor in tensors {
        tensor.bytes = data_bytes(&tensor.name, &tensor.dims, tensor.ty, dialect)?.unwrap_or(0);
        tensor.offset += section.start;
    }
    Ok(())
}

/// Checks that the tensors follow each other, padded to the alignment. Behind a tensor of unknown size, anything further is accepted.
fn check_gaps(tensors: &[TensorInfo], order: &[u32], alignment: u64, dialect: Dialect) -> Result<(), GgufError> {
    let mut previous: Option<&TensorInfo> = None;
    let mut end = Some(0);
    for tensor in order.iter().map(|index| &tensors[*index as usize]) {
        let (name, offset) = (|| tensor.name.clone(), tensor.offset);
        if offset % alignment != 0 {
            return Err(GgufError::Misaligned { tensor: name(), offset, alignment });
        }
        if let Some(end) = end {
            let expected = u64::next_multiple_of(end, alignment);
            if let Some(other) = previous.filter(|_| offset < end) {
                return Err(GgufError::Overlap { tensor: name(), offset, other: other.name.clone(), end });
            }
            if offset != expected {
                return Err(GgufError::Hole { tensor: name(), offset, expected });
            }
        }
        end = match data_bytes(&tensor.name, &tensor.dims, tensor.ty, dialect)? {
            Some(bytes) => Some(padded_end(tensor, bytes, alignment)?),
            None => None,
        };
        previous = Some(tensor);
    }
    Ok(())
}

/// Gives where the data of a tensor ends, once it is sure that padding it does not overflow.
fn padded_end(tensor: &TensorInfo, bytes: u64, alignment: u64) -> Result<u64, GgufError> {
    let end = tensor.offset.checked_add(bytes);
    let end = end.filter(|end| end.checked_next_multiple_of(alignment).is_some());
    end.ok_or_else(|| GgufError::TooLarge { tensor: tensor.name.clone(), dims: tensor.dims.clone() })
}

/// Checks that the data of a tensor lies in the file; of an unknown type, that it starts there.
fn check_end(tensor: &TensorInfo, section: Section, dialect: Dialect) -> Result<(), GgufError> {
    let bytes = data_bytes(&tensor.name, &tensor.dims, tensor.ty, dialect)?.unwrap_or(0);
    let offset = section.start.saturating_add(tensor.offset);
    let end = section.start.checked_add(tensor.offset).and_then(|start| start.checked_add(bytes));
    if end.is_some_and(|end| end <= section.length) {
        return Ok(());
    }
    Err(GgufError::OutOfFile { tensor: tensor.name.clone(), offset, bytes, length: section.length })
}
