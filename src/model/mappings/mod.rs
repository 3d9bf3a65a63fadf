//! Per architecture: who reads each activation, and what makes it. Data only, written after llama.cpp's graph builders.
//!
//! A rule holds only as long as nothing else in the block touches the activation; [`crate::model::groups()`] therefore drops the producers of a
//! block that holds a tensor without a known role.

mod gemma;
mod llama;
mod others;
mod phi;
mod qwen;

use super::name::{Kind, Role};
use Role::{
    AttnK, AttnKNorm, AttnNorm, AttnOutput, AttnPostNorm, AttnQ, AttnQNorm, AttnQkv, AttnSinks, AttnV, FfnDown,
    FfnDownExps, FfnDownShexp, FfnGate, FfnGateExps, FfnGateShexp, FfnGateUpExps, FfnNorm, FfnPostNorm, FfnUp,
    FfnUpExps, FfnUpShexp, OutputNorm, Rope, Router, RouterBias, SharedRouter, Unknown,
};

/// What makes an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The output of this norm, gain and bias included.
    Norm(Role),
    /// The residual stream itself, without a norm between.
    Stream,
    /// The attention's weighted sums of the value rows.
    Values,
    /// `f(gate) * up`, element by element: linear in `up`.
    Gated {
        /// The factor inside the nonlinearity.
        gate: Role,
        /// The linear factor.
        up: Role,
    },
    /// As [`Input::Gated`], with both factors in one matrix: the gate's rows first.
    GatedFused(Role),
    /// `f(gate) * g(up)` with a `g` that is not linear (clamped): the channels can be permuted, not scaled.
    Clamped {
        /// One factor.
        gate: Role,
        /// The other.
        up: Role,
    },
    /// `f(up)`: the channels can be permuted, not scaled.
    Plain(Role),
}

/// One activation of a block: its name, its readers, and what may make it (the first whose tensors exist does).
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The last part of the group's key.
    pub key: &'static str,
    /// All tensors whose columns read it.
    pub readers: &'static [Role],
    /// What makes it.
    pub inputs: &'static [Input],
}

/// A family of architectures with the same graph, as far as folding is concerned.
#[derive(Debug)]
pub struct Family {
    /// The values of `general.architecture`.
    pub archs: &'static [&'static str],
    /// The activations of a block.
    pub rules: &'static [Rule],
    /// Why the residual stream cannot be permuted as a whole, if it cannot.
    pub fixed_stream: Option<&'static str>,
}

/// Finds the table of an architecture.
pub fn family(arch: &str) -> Option<&'static Family> {
    let families = [llama::FAMILIES, qwen::FAMILIES, gemma::FAMILIES, phi::FAMILIES, others::FAMILIES];
    families.into_iter().flatten().find(|family| family.archs.contains(&arch))
}

/// Readers of an attention's input.
const QKV: &[Role] = &[AttnQ, AttnK, AttnV, AttnQkv];
/// Readers of the input of a feed-forward network, dense or of experts, shared experts and routers included.
const FFN: &[Role] =
    &[FfnGate, FfnUp, Router, FfnGateExps, FfnUpExps, FfnGateUpExps, SharedRouter, FfnGateShexp, FfnUpShexp];

/// Attention behind its norm.
const ATTN_IN: Rule = Rule { key: "attn_in", readers: QKV, inputs: &[Input::Norm(AttnNorm)] };
/// The output projection of the attention.
const ATTN_OUT: Rule = Rule { key: "attn_out", readers: &[AttnOutput], inputs: &[Input::Values] };
/// A feed-forward network behind its norm.
const FFN_IN: Rule = Rule { key: "ffn_in", readers: FFN, inputs: &[Input::Norm(FfnNorm)] };
/// The down projection behind a gate.
const DOWN: Rule = Rule {
    key: "ffn_down",
    readers: &[FfnDown],
    inputs: &[Input::Gated { gate: FfnGate, up: FfnUp }, Input::Plain(FfnUp)],
};
/// The down projections of the experts.
const DOWN_EXPS: Rule = Rule {
    key: "ffn_down_exps",
    readers: &[FfnDownExps],
    inputs: &[
        Input::Gated { gate: FfnGateExps, up: FfnUpExps },
        Input::GatedFused(FfnGateUpExps),
        Input::Plain(FfnUpExps),
    ],
};
/// The down projection of the shared experts.
const DOWN_SHEXP: Rule = Rule {
    key: "ffn_down_shexp",
    readers: &[FfnDownShexp],
    inputs: &[Input::Gated { gate: FfnGateShexp, up: FfnUpShexp }, Input::Plain(FfnUpShexp)],
};

/// The usual pre-norm block: attention, then a feed-forward network, each behind a norm of its own.
const PRE_NORM: &[Rule] = &[ATTN_IN, ATTN_OUT, FFN_IN, DOWN, DOWN_EXPS, DOWN_SHEXP];

/// The rules for names alone: what is grouped together where the graph is not known.
pub(super) const BY_NAME: &[Rule] = &[
    Rule { key: "attn_in", readers: QKV, inputs: &[] },
    Rule { key: "attn_out", readers: &[AttnOutput], inputs: &[] },
    Rule { key: "ffn_in", readers: FFN, inputs: &[] },
    Rule { key: "ffn_down", readers: &[FfnDown], inputs: &[] },
    Rule { key: "ffn_down_exps", readers: &[FfnDownExps], inputs: &[] },
    Rule { key: "ffn_down_shexp", readers: &[FfnDownShexp], inputs: &[] },
];

/// Where a tensor meets the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meets {
    /// Its columns are channels of the stream.
    Columns,
    /// Its rows are.
    Rows,
    /// It does not.
    Never,
    /// Not known.
    Unknown,
}

/// Says where a tensor meets the residual stream, in every architecture of the tables.
pub fn meets_stream(role: Role, kind: Kind) -> Meets {
    match (role, kind) {
        (Unknown, _) | (_, Kind::Other) => Meets::Unknown,
        (Rope | AttnQNorm | AttnKNorm | AttnSinks | RouterBias, _) => Meets::Never,
        (AttnOutput | FfnDown | FfnDownExps | FfnDownShexp, Kind::Weight) => Meets::Rows,
        (
            AttnOutput | FfnDown | FfnDownExps | FfnDownShexp | OutputNorm | AttnNorm | FfnNorm | AttnPostNorm
            | FfnPostNorm,
            _,
        )
        | (_, Kind::Weight) => Meets::Columns,
        (_, Kind::Bias) => Meets::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_stands_in_one_table_only() {
        let all: Vec<&str> = [llama::FAMILIES, qwen::FAMILIES, gemma::FAMILIES, phi::FAMILIES, others::FAMILIES]
            .into_iter()
            .flatten()
            .flat_map(|family| family.archs.iter().copied())
            .collect();
        let mut unique = all.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), all.len());
    }

    #[test]
    fn no_activation_has_two_readers_lists() {
        for arch in ["llama", "qwen2", "qwen3moe", "gemma3", "phi2", "phi3", "command-r", "olmo2"] {
            let readers: Vec<Role> =
                family(arch).unwrap().rules.iter().flat_map(|rule| rule.readers.iter().copied()).collect();
            let mut unique = readers.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), readers.len(), "{arch}");
        }
        assert!(family("mamba").is_none());
    }
}
