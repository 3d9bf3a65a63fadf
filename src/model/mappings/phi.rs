//! Phi: Phi-2 feeds attention and feed-forward network from one layer norm; Phi-3 fuses gate and up in one matrix; Phi-3.5 MoE has experts.

use super::{ATTN_OUT, DOWN, DOWN_EXPS, FFN_IN, Family, Input, PRE_NORM, Role, Rule};
use Role::{AttnK, AttnNorm, AttnQ, AttnQkv, AttnV, FfnDown, FfnGate, FfnUp};

/// One norm for both branches; without a gate the input of the down projection is no linear function of anything.
pub(super) const PARALLEL: &[Rule] = &[
    Rule { key: "attn_in", readers: &[AttnQ, AttnK, AttnV, AttnQkv, FfnGate, FfnUp], inputs: &[Input::Norm(AttnNorm)] },
    ATTN_OUT,
    DOWN,
];

/// Gate and up in one matrix, the gate's rows first.
pub(super) const FUSED: &[Rule] = &[
    super::ATTN_IN,
    ATTN_OUT,
    FFN_IN,
    Rule { key: "ffn_down", readers: &[FfnDown], inputs: &[Input::GatedFused(FfnUp)] },
    DOWN_EXPS,
];

/// The families of this table.
pub(super) const FAMILIES: &[Family] = &[
    Family { archs: &["phi2"], rules: PARALLEL, fixed_stream: None },
    Family { archs: &["phi3"], rules: FUSED, fixed_stream: None },
    Family { archs: &["phimoe"], rules: PRE_NORM, fixed_stream: None },
];
