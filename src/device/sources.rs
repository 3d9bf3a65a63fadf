//! The device code that is compiled, embedded in the program: the same files that llama.cpp gets.

use super::nvrtc::Unit;

macro_rules! embedded {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../cuda/", $folder, "/", $name)))),*]
    };
}

/// The headers: names and texts.
pub const HEADERS: &[(&str, &str)] = embedded!("include": "tcq4_act.cuh",
    "tcq4_decode.cuh",
    "tcq4_device.cuh",
    "tcq4_encode.cuh",
    "tcq4_encode_draft.cuh",
    "tcq4_encode_search.cuh",
    "tcq4_gemm.cuh",
    "tcq4_gemm_mma.cuh",
    "tcq4_gemm_stage.cuh",
    "tcq4_k32.h",
    "tcq4_mul_mat.cuh",
    "tcq4_mul_vec.cuh");

/// The files with kernels: names and texts.
pub const FILES: &[(&str, &str)] = embedded!("kernels": "activations.cu",
    "dequantize.cu",
    "encode.cu",
    "fwht.cu",
    "gather.cu",
    "gram.cu",
    "mul_mat.cu",
    "mul_mat_id.cu",
    "mul_vec.cu",
    "smooth.cu",
    "statistics.cu");

/// What is compiled for a file; an empty text for a name that is not among [`FILES`], which a test rules out for every kernel.
pub fn unit(file: &'static str) -> Unit<'static> {
    let text = FILES.iter().find(|(name, _)| *name == file).map_or("", |(_, text)| text);
    Unit { name: file, text, headers: HEADERS }
}
