//! Plain floats as the bytes of F32, F16 and BF16 tensors. Other types are written by ggml.

use bytemuck::cast_slice;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::gguf::GgmlType;

/// The values as little-endian bytes of `ty`, which is F32, F16 or BF16; `None` if one of them is not finite there.
pub(super) fn to_bytes(values: &[f32], ty: GgmlType) -> Option<Vec<u8>> {
    match ty {
        GgmlType::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            halves.iter().all(|half| half.is_finite()).then(|| cast_slice(&halves).to_vec())
        }
        GgmlType::BF16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            halves.iter().all(|half| half.is_finite()).then(|| cast_slice(&halves).to_vec())
        }
        _ => values.iter().all(|value| value.is_finite()).then(|| cast_slice(values).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_beyond_the_range_of_a_type_are_refused() {
        let largest = [(GgmlType::F16, 65_504.0), (GgmlType::BF16, 3.38e38), (GgmlType::F32, f32::MAX)];
        for (ty, value) in largest {
            assert!(to_bytes(&[1.0, value], ty).is_some(), "{ty}");
            assert_eq!(to_bytes(&[1.0, f32::NAN], ty), None, "{ty}");
        }
        assert_eq!(to_bytes(&[65_520.0], GgmlType::F16), None);
        assert_eq!(to_bytes(&[f32::MAX], GgmlType::BF16), None);
        assert_eq!(to_bytes(&[1.0, -2.0], GgmlType::BF16), Some(vec![0x80, 0x3f, 0x00, 0xc0]));
    }
}
