//! ggml's own tensor types and what is known about the linked llama.cpp. TCQ4 is not among the types: `tcq` has it.

use super::ffi;
use crate::Result;

/// Encodes `src`, rows of `columns` values, as ggml's type `ty` into `dst`; `importance` weighs the columns (`E[x²]`).
/// May be called from many threads at once.
///
/// # Errors
/// For unknown or unwritable types, lengths that do not fit, values that are not finite, and a missing importance matrix where the
/// type needs one.
pub fn quantize_rows(ty: u32, src: &[f32], columns: usize, importance: Option<&[f32]>, dst: &mut [u8]) -> Result<()> {
    Ok(ffi::quantize(ty, src, columns, importance, dst)?)
}

/// Decodes `src`, rows of `columns` values of ggml's type `ty`, into `dst`. May be called from many threads at once.
///
/// # Errors
/// For unknown or unreadable types and lengths that do not fit.
pub fn dequantize_rows(ty: u32, src: &[u8], columns: usize, dst: &mut [f32]) -> Result<()> {
    Ok(ffi::dequantize(ty, src, columns, dst)?)
}

/// The CPU features that the linked llama.cpp uses, by its own names.
pub fn simd_summary() -> String {
    let info = ffi::system_info();
    let features = info.split(['|', ':']).filter_map(|part| part.trim().strip_suffix("= 1")).map(str::trim);
    format!("llama.cpp uses: {}", features.collect::<Vec<_>>().join(" "))
}

/// Whether the linked llama.cpp runs TCQ4_K32 tensors (type id 80) as they are; the stock one does not.
pub fn knows_tcq4() -> bool {
    ffi::knows_tcq4()
}

/// Which llama.cpp is linked: its ggml's version, and whether it is the stock one or patched to run TCQ4_K32.
pub fn about() -> String {
    format!("llama.cpp: {}, ggml {}", if knows_tcq4() { "patched for TCQ4_K32" } else { "stock" }, ffi::version())
}
