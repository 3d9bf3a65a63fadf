//! Llama and what has its graph: pre-norm blocks with RMS norms, gated feed-forward networks, experts where the file has them.
//!
//! Mistral and Mixtral files say `llama`; Mistral 3 only scales the queries besides.

use super::{Family, PRE_NORM};

/// The families of this table.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        archs: &["llama", "mistral3", "smollm3", "internlm2", "exaone", "dream", "llada", "deepseek"],
        rules: PRE_NORM,
        fixed_stream: None,
    },
    // The stream is scaled by a constant after every addition, which a permutation does not see.
    Family { archs: &["granite", "granitemoe", "minicpm"], rules: PRE_NORM, fixed_stream: None },
];
