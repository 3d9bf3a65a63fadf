//! Gemma 1 to 3: pre-norm blocks, from Gemma 2 on with norms behind the projections too, which no projection reads.
//!
//! The converters add Gemma's 1 to every gain before they write the file, so the stored gain is the whole factor and can be scaled as it is.

use super::{Family, PRE_NORM};

/// The families of this table.
pub(super) const FAMILIES: &[Family] = &[
    Family { archs: &["gemma", "gemma2", "gemma3"], rules: PRE_NORM, fixed_stream: None },
    Family {
        archs: &["gemma-embedding"],
        rules: PRE_NORM,
        fixed_stream: Some("the residual stream is the model's output"),
    },
];
