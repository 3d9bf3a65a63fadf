//! Further architectures: parallel blocks (Command R), post-norm blocks (OLMo 2), renamed norms (Seed-OSS, gpt-oss), plain feed-forward networks.

use super::phi::{FUSED, PARALLEL};
use super::{ATTN_IN, ATTN_OUT, DOWN, FFN, Family, Input, PRE_NORM, QKV, Role, Rule};
use Role::{AttnPostNorm, FfnDownExps, FfnGateExps, FfnUpExps};

/// Norms behind the projections only: the projections read the stream itself.
const POST_NORM: &[Rule] = &[
    Rule { key: "attn_in", readers: QKV, inputs: &[Input::Stream] },
    ATTN_OUT,
    Rule { key: "ffn_in", readers: FFN, inputs: &[Input::Stream] },
    DOWN,
];

/// The norm before the feed-forward network is called `post_attention_norm`.
const FFN_BEHIND_POST: Rule = Rule { key: "ffn_in", readers: FFN, inputs: &[Input::Norm(AttnPostNorm)] };

/// Experts whose up branch is clamped: scaling it would move the clamp.
const CLAMPED_EXPERTS: Rule = Rule {
    key: "ffn_down_exps",
    readers: &[FfnDownExps],
    inputs: &[Input::Clamped { gate: FfnGateExps, up: FfnUpExps }],
};

/// The families of this table.
pub(super) const FAMILIES: &[Family] = &[
    Family { archs: &["command-r", "cohere2"], rules: PARALLEL, fixed_stream: None },
    Family { archs: &["olmo2"], rules: POST_NORM, fixed_stream: None },
    Family { archs: &["seed_oss"], rules: &[ATTN_IN, ATTN_OUT, FFN_BEHIND_POST, DOWN], fixed_stream: None },
    Family { archs: &["gpt-oss"], rules: &[ATTN_IN, ATTN_OUT, FFN_BEHIND_POST, CLAMPED_EXPERTS], fixed_stream: None },
    Family { archs: &["glm4"], rules: FUSED, fixed_stream: None },
    // Squared ReLU and GELU without a gate: the rule for the down projection falls through to `Plain`.
    Family { archs: &["starcoder2", "arcee"], rules: PRE_NORM, fixed_stream: None },
];
