//! Arrays as an `.npz` file, which `numpy.load` opens: a ZIP archive, not compressed, of one `.npy` (version 1.0, little endian, C order) each.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::error::{Error, Result};

/// The values of an array.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values<'a> {
    /// Single precision.
    F32(&'a [f32]),
    /// Double precision.
    F64(&'a [f64]),
    /// Whole numbers.
    I64(&'a [i64]),
}

/// An array with a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<'a> {
    /// Its name in the archive.
    pub name: &'a str,
    /// Its dimensions, the last running fastest.
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Values<'a>,
}

/// The bytes of an archive of `arrays`; the same arrays give the same bytes.
///
/// # Errors
/// If the archive cannot be written.
///
/// # Panics
/// If an array has another number of values than its shape says.
pub fn npz(arrays: &[Array<'_>]) -> Result<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(false);
    for array in arrays {
        let bytes = npy(array);
        let options = options.large_file(bytes.len() >= u32::MAX as usize);
        archive.start_file(format!("{}.npy", array.name), options).map_err(refused)?;
        archive.write_all(&bytes).map_err(Error::io("NPZ", "write"))?;
    }
    Ok(archive.finish().map_err(refused)?.into_inner())
}

/// One array as `.npy`.
fn npy(array: &Array<'_>) -> Vec<u8> {
    let (kind, count, values): (_, _, &[u8]) = match array.values {
        Values::F32(values) => ("<f4", values.len(), bytemuck::cast_slice(values)),
        Values::F64(values) => ("<f8", values.len(), bytemuck::cast_slice(values)),
        Values::I64(values) => ("<i8", values.len(), bytemuck::cast_slice(values)),
    };
    assert_eq!(array.shape.iter().product::<usize>(), count, "{}", array.name);
    let shape: Vec<String> = array.shape.iter().map(|dim| format!("{dim},")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({}), }}", shape.join(" "));
    // The data begins at a multiple of 64 bytes, after magic, version, length and a newline.
    let before = 10 + header.len() + 1;
    header.extend(std::iter::repeat_n(' ', before.next_multiple_of(64) - before));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values);
    bytes
}

fn refused(error: zip::result::ZipError) -> Error {
    Error::io("NPZ", "write")(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_padded_and_says_type_and_shape() {
        let bytes = npy(&Array { name: "x", shape: vec![2, 1], values: Values::F32(&[1.0, -2.0]) });
        assert_eq!(bytes.len(), 128 + 8);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let header = std::str::from_utf8(&bytes[10..128]).unwrap();
        assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1,), }  "), "{header}");
        assert!(header.ends_with(" \n"));
        assert_eq!(bytes[132..], (-2.0f32).to_le_bytes());
        let vector = npy(&Array { name: "x", shape: vec![1], values: Values::I64(&[5]) });
        assert!(String::from_utf8_lossy(&vector).contains("'<i8', 'fortran_order': False, 'shape': (1,), }"));
    }

    #[test]
    fn the_same_arrays_give_the_same_bytes() {
        let make = || npz(&[Array { name: "x", shape: vec![2], values: Values::F64(&[0.5, 1.5]) }]).unwrap();
        let bytes = make();
        assert_eq!(bytes, make());
        assert!(bytes.starts_with(b"PK\x03\x04") && bytes.windows(5).any(|part| part == b"x.npy"));
    }
}
