//! Qwen 2 and 3, dense and of experts: pre-norm blocks; biases on q, k, v (Qwen 2); norms on the heads of q and k (Qwen 3), which the input does not see.
//!
//! Qwen 2 MoE has a shared expert whose gate reads the norm's output as well.

use super::{Family, PRE_NORM};

/// Why a stream that a vision encoder writes into stays as it is.
const VISION: &str = "a vision encoder, which is another file, writes into the residual stream";

/// The families of this table.
pub(super) const FAMILIES: &[Family] = &[
    Family { archs: &["qwen2", "qwen2moe", "qwen3", "qwen3moe", "olmoe"], rules: PRE_NORM, fixed_stream: None },
    Family { archs: &["qwen2vl", "qwen3vl", "qwen3vlmoe"], rules: PRE_NORM, fixed_stream: Some(VISION) },
];
