//! What `--version` says: this program, the llama.cpp in it, and the instructions in use.

use std::sync::LazyLock;

use crate::llama;
use crate::tcq::{GGML_TYPE_ID, Isa};

/// The long text.
pub(super) static LONG: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\n{}\n{}\nTCQ4 kernels: {} of {}\nTCQ4_K32 type id: {GGML_TYPE_ID}\nbuilt for: {}",
        env!("CARGO_PKG_VERSION"),
        llama::about(),
        llama::simd_summary(),
        Isa::best(),
        Isa::available().iter().map(Isa::to_string).collect::<Vec<_>>().join(", "),
        built_for(),
    )
});

/// The CPU that the compiler was told to build for, told from the instructions it was allowed.
fn built_for() -> &'static str {
    if cfg!(target_feature = "avx512f") {
        "CPUs with AVX-512 (not portable to others)"
    } else if cfg!(target_feature = "avx2") {
        "CPUs with AVX2"
    } else {
        "the baseline of this architecture"
    }
}
