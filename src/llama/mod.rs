//! llama.cpp in process: models, tokens, forward passes whose matrix multiplications can be watched and whose inputs can be changed, and ggml's own tensor types.
//! All raw calls and all `unsafe` of this floor are in `ffi/`; without the `llama` feature a stub of the same shape refuses with
//! [`crate::error::LlamaError::NotBuiltIn`], so that callers need no `cfg`.

mod cpu;
mod observe;
mod options;
mod rewrite;

#[cfg(feature = "llama")]
mod context;
#[cfg(feature = "llama")]
mod ffi;
#[cfg(feature = "llama")]
mod ggml;
#[cfg(feature = "llama")]
mod model;
#[cfg(not(feature = "llama"))]
mod stub;

pub use cpu::check_cpu;
pub use observe::{Capture, Experts, InputId, Node, Observer, Op};
pub use options::{ContextOptions, Logits, ModelOptions};
pub use rewrite::{Input, Rewriter, Watch};

#[cfg(feature = "llama")]
pub use {
    context::Context,
    ggml::{about, dequantize_rows, knows_tcq4, quantize_rows, simd_summary},
    model::Model,
};

#[cfg(not(feature = "llama"))]
pub use stub::{Context, Model, about, dequantize_rows, knows_tcq4, quantize_rows, simd_summary};
