//! ggml's tensor types: its own encoder and decoders, behind checks of everything that would make it abort. Both are called from many
//! threads at once; ggml guards its tables with a lock of its own.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_void};

use llama_cpp_sys_2 as sys;

use crate::error::LlamaError;
use crate::tcq;

/// The types that `ggml_quantize_chunk` writes; it aborts the process for any other.
const ENCODERS: [sys::ggml_type; 28] = [
    sys::GGML_TYPE_F32,
    sys::GGML_TYPE_F16,
    sys::GGML_TYPE_BF16,
    sys::GGML_TYPE_Q1_0,
    sys::GGML_TYPE_Q2_0,
    sys::GGML_TYPE_Q4_0,
    sys::GGML_TYPE_Q4_1,
    sys::GGML_TYPE_Q5_0,
    sys::GGML_TYPE_Q5_1,
    sys::GGML_TYPE_Q8_0,
    sys::GGML_TYPE_MXFP4,
    sys::GGML_TYPE_NVFP4,
    sys::GGML_TYPE_Q2_K,
    sys::GGML_TYPE_Q3_K,
    sys::GGML_TYPE_Q4_K,
    sys::GGML_TYPE_Q5_K,
    sys::GGML_TYPE_Q6_K,
    sys::GGML_TYPE_TQ1_0,
    sys::GGML_TYPE_TQ2_0,
    sys::GGML_TYPE_IQ2_XXS,
    sys::GGML_TYPE_IQ2_XS,
    sys::GGML_TYPE_IQ2_S,
    sys::GGML_TYPE_IQ3_XXS,
    sys::GGML_TYPE_IQ3_S,
    sys::GGML_TYPE_IQ1_S,
    sys::GGML_TYPE_IQ1_M,
    sys::GGML_TYPE_IQ4_NL,
    sys::GGML_TYPE_IQ4_XS,
];

/// Size of a block of `ty` in elements and bytes, and its name.
fn traits(ty: u32) -> Result<(&'static sys::ggml_type_traits, String), LlamaError> {
    let unknown = || LlamaError::Type { name: format!("type {ty}"), what: "is unknown to this llama.cpp" };
    if ty >= sys::GGML_TYPE_COUNT {
        return Err(unknown());
    }
    // SAFETY: below GGML_TYPE_COUNT the table has an entry, for ever.
    let traits = unsafe { sys::ggml_get_type_traits(ty).as_ref() }.ok_or_else(unknown)?;
    if traits.blck_size <= 0 || traits.type_size == 0 || traits.type_name.is_null() {
        return Err(unknown());
    }
    Ok((traits, text(traits.type_name)))
}

/// Bytes of `values` elements in rows of `columns`.
fn encoded_len(
    ty: u32,
    values: usize,
    columns: usize,
) -> Result<(&'static sys::ggml_type_traits, String, usize), LlamaError> {
    let (traits, name) = traits(ty)?;
    let block = traits.blck_size as usize;
    if columns == 0 || !columns.is_multiple_of(block) || !values.is_multiple_of(columns) {
        return Err(LlamaError::Shape { name, values, columns, block });
    }
    let bytes = (values / block).checked_mul(traits.type_size);
    bytes.map(|bytes| (traits, name.clone(), bytes)).ok_or(LlamaError::Shape { name, values, columns, block })
}

/// Encodes rows of f32 as ggml's type `ty`.
pub(in crate::llama) fn quantize(
    ty: u32,
    src: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<(), LlamaError> {
    let (_, name, bytes) = encoded_len(ty, src.len(), columns)?;
    if !ENCODERS.contains(&ty) {
        return Err(LlamaError::Type { name, what: "cannot be written by llama.cpp" });
    }
    if dst.len() != bytes {
        return Err(LlamaError::Length { name, expected: bytes, got: dst.len() });
    }
    check_importance(ty, &name, columns, importance)?;
    if let Some(at) = src.iter().position(|value| !value.is_finite()) {
        return Err(LlamaError::Value { name, what: "weight", at, value: src[at] });
    }
    if src.is_empty() {
        return Ok(());
    }
    let importance = importance.map_or(std::ptr::null(), <[f32]>::as_ptr);
    let rows = (src.len() / columns) as i64;
    // SAFETY: the type has an encoder; source, destination and importance have the checked lengths; f32 output only needs bytes.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            ty,
            src.as_ptr(),
            dst.as_mut_ptr().cast::<c_void>(),
            0,
            rows,
            columns as i64,
            importance,
        )
    };
    if written == bytes { Ok(()) } else { Err(LlamaError::Length { name, expected: bytes, got: written }) }
}

fn check_importance(ty: u32, name: &str, columns: usize, importance: Option<&[f32]>) -> Result<(), LlamaError> {
    let name = || name.to_owned();
    let Some(importance) = importance else {
        // SAFETY: a pure look-up.
        let required = unsafe { sys::ggml_quantize_requires_imatrix(ty) };
        let what = "needs an importance matrix";
        return if required { Err(LlamaError::Type { name: name(), what }) } else { Ok(()) };
    };
    if importance.len() != columns {
        return Err(LlamaError::Length { name: name(), expected: columns, got: importance.len() });
    }
    match importance.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
        Some(at) => Err(LlamaError::Value { name: name(), what: "importance", at, value: importance[at] }),
        None => Ok(()),
    }
}

/// Decodes rows of ggml's type `ty` to f32.
pub(in crate::llama) fn dequantize(ty: u32, src: &[u8], columns: usize, dst: &mut [f32]) -> Result<(), LlamaError> {
    let (traits, name, bytes) = encoded_len(ty, dst.len(), columns)?;
    if src.len() != bytes {
        return Err(LlamaError::Length { name, expected: bytes, got: src.len() });
    }
    if ty == sys::GGML_TYPE_F32 {
        bytemuck::cast_slice_mut::<f32, u8>(dst).copy_from_slice(src);
        return Ok(());
    }
    let Some(to_float) = traits.to_float else {
        return Err(LlamaError::Type { name, what: "cannot be read by llama.cpp" });
    };
    let src = aligned(src);
    // SAFETY: source and destination have the lengths that the type asks for, and the source is aligned for its blocks.
    unsafe { to_float(src.as_ptr().cast::<c_void>(), dst.as_mut_ptr(), dst.len() as i64) };
    Ok(())
}

/// The bytes at an address that suits every block struct (8 bytes), copied if need be.
fn aligned(bytes: &[u8]) -> Cow<'_, [u8]> {
    const ALIGN: usize = 8;
    if bytes.as_ptr().addr().is_multiple_of(ALIGN) {
        return Cow::Borrowed(bytes);
    }
    // The allocator gives such addresses to anything of this size; checked, because the type does not promise it.
    let copy = bytes.to_vec();
    debug_assert!(copy.as_ptr().addr().is_multiple_of(ALIGN));
    Cow::Owned(copy)
}

/// llama.cpp's own list of the CPU features that it was compiled for.
pub(in crate::llama) fn system_info() -> String {
    // SAFETY: returns a pointer to a static string.
    text(unsafe { sys::llama_print_system_info() })
}

/// ggml's version.
pub(in crate::llama) fn version() -> String {
    // SAFETY: returns a pointer to a static string.
    text(unsafe { sys::ggml_version() })
}

/// Whether ggml's table of types has TCQ4_K32 under our id, with our blocks.
pub(in crate::llama) fn knows_tcq4() -> bool {
    traits(tcq::GGML_TYPE_ID).is_ok_and(|(traits, name)| {
        let block = (traits.blck_size as usize, traits.type_size);
        block == (tcq::CHUNK, tcq::ROW_BYTES) && name.to_ascii_lowercase().starts_with("tcq4")
    })
}

fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: static NUL-terminated strings of llama.cpp.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
