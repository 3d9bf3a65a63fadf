//! Tensor names of GGUF models and the roles they stand for.
//!
//! The names are those of llama.cpp's table of architectures; a name that is not in the list here has the role [`Role::Unknown`], which every
//! rule treats as "may read or write anything".

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the variants are the names of the tensors")]
pub enum Role {
    TokenEmbd,
    Output,
    OutputNorm,
    Rope,
    AttnNorm,
    AttnQ,
    AttnK,
    AttnV,
    AttnQkv,
    AttnQNorm,
    AttnKNorm,
    AttnSinks,
    AttnOutput,
    AttnPostNorm,
    FfnNorm,
    FfnPostNorm,
    FfnGate,
    FfnUp,
    FfnDown,
    Router,
    RouterBias,
    FfnGateExps,
    FfnUpExps,
    FfnGateUpExps,
    FfnDownExps,
    SharedRouter,
    FfnGateShexp,
    FfnUpShexp,
    FfnDownShexp,
    Unknown,
}

/// The last part of a tensor's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `.weight`: a matrix, a stack of matrices or a gain.
    Weight,
    /// `.bias`: features along dimension 0.
    Bias,
    /// Anything else, `.scale` for instance.
    Other,
}

/// A tensor's name, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorName {
    /// The block (layer), if it belongs to one.
    pub block: Option<u32>,
    /// What it is for.
    pub role: Role,
    /// Which part of it this is.
    pub kind: Kind,
}

/// Names outside the blocks.
const GLOBAL: &[(&str, Role)] = &[
    ("token_embd", Role::TokenEmbd),
    ("output", Role::Output),
    ("output_norm", Role::OutputNorm),
    ("rope_freqs", Role::Rope),
    ("rope_factors_long", Role::Rope),
    ("rope_factors_short", Role::Rope),
];

/// Names inside a block, after `blk.N.`.
const BLOCK: &[(&str, Role)] = &[
    ("attn_norm", Role::AttnNorm),
    ("attn_q", Role::AttnQ),
    ("attn_k", Role::AttnK),
    ("attn_v", Role::AttnV),
    ("attn_qkv", Role::AttnQkv),
    ("attn_q_norm", Role::AttnQNorm),
    ("attn_k_norm", Role::AttnKNorm),
    ("attn_sinks", Role::AttnSinks),
    ("attn_output", Role::AttnOutput),
    ("attn_rot_embd", Role::Rope),
    ("rope_freqs", Role::Rope),
    ("rope_factors_long", Role::Rope),
    ("rope_factors_short", Role::Rope),
    ("post_attention_norm", Role::AttnPostNorm),
    ("ffn_norm", Role::FfnNorm),
    ("post_ffw_norm", Role::FfnPostNorm),
    ("ffn_gate", Role::FfnGate),
    ("ffn_up", Role::FfnUp),
    ("ffn_down", Role::FfnDown),
    ("ffn_gate_inp", Role::Router),
    ("exp_probs_b", Role::RouterBias),
    ("ffn_gate_exps", Role::FfnGateExps),
    ("ffn_up_exps", Role::FfnUpExps),
    ("ffn_gate_up_exps", Role::FfnGateUpExps),
    ("ffn_down_exps", Role::FfnDownExps),
    ("ffn_gate_inp_shexp", Role::SharedRouter),
    ("ffn_gate_shexp", Role::FfnGateShexp),
    ("ffn_up_shexp", Role::FfnUpShexp),
    ("ffn_down_shexp", Role::FfnDownShexp),
];

impl TensorName {
    /// Takes `name` apart. Never fails: what is not known has the role [`Role::Unknown`].
    pub fn parse(name: &str) -> Self {
        let (block, rest) = match split_block(name) {
            Some((block, rest)) => (Some(block), rest),
            None => (None, name),
        };
        let (base, kind) = if let Some(base) = rest.strip_suffix(".weight") {
            (base, Kind::Weight)
        } else if let Some(base) = rest.strip_suffix(".bias") {
            (base, Kind::Bias)
        } else {
            (rest.rsplit_once('.').map_or(rest, |(base, _)| base), Kind::Other)
        };
        let table = if block.is_some() { BLOCK } else { GLOBAL };
        let role = table.iter().find(|(known, _)| *known == base).map_or(Role::Unknown, |&(_, role)| role);
        Self { block, role, kind }
    }
}

/// Splits `blk.N.rest` into `N` and `rest`.
fn split_block(name: &str) -> Option<(u32, &str)> {
    let (number, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The name of the tensor with this role, as the tables above spell it: `blk.3.attn_q.weight`.
pub(crate) fn spell(block: Option<u32>, role: Role, suffix: &str) -> Option<String> {
    let table = if block.is_some() { BLOCK } else { GLOBAL };
    let (base, _) = table.iter().find(|&&(_, known)| known == role)?;
    Some(match block {
        Some(block) => format!("blk.{block}.{base}.{suffix}"),
        None => format!("{base}.{suffix}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_apart() {
        let parse = TensorName::parse;
        assert_eq!(parse("blk.12.attn_q.bias"), TensorName { block: Some(12), role: Role::AttnQ, kind: Kind::Bias });
        assert_eq!(parse("output.weight"), TensorName { block: None, role: Role::Output, kind: Kind::Weight });
        assert_eq!(parse("blk.0.ffn_gate_inp_shexp.weight").role, Role::SharedRouter);
        assert_eq!(
            parse("blk.0.attn_output.scale"),
            TensorName { block: Some(0), role: Role::AttnOutput, kind: Kind::Other }
        );
    }

    #[test]
    fn does_not_guess() {
        for name in [
            "blk.x.attn_q.weight",
            "blk.0.ffn_gate.3.weight",
            "blk.0.nextn.eh_proj.weight",
            "attn_q.weight",
            "",
            "blk.",
        ] {
            assert_eq!(TensorName::parse(name).role, Role::Unknown, "{name}");
        }
    }

    #[test]
    fn spells_what_it_parses() {
        let name = spell(Some(7), Role::FfnGateUpExps, "weight").unwrap();
        assert_eq!(name, "blk.7.ffn_gate_up_exps.weight");
        assert_eq!(TensorName::parse(&name).role, Role::FfnGateUpExps);
        assert_eq!(spell(None, Role::OutputNorm, "bias").unwrap(), "output_norm.bias");
    }
}
