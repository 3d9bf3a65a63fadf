//! Values of command line options, parsed into types that cannot be wrong.

use std::str::FromStr;

use clap::ValueEnum;
use regex::Regex;

use crate::gguf::GgmlType;
use crate::inspect::{Names, ScaleFormat};
use crate::quant::recipe::{OrderRule, Preset, RoundingRule, ScaleRule, SensitivityRule};
use crate::quant::{Apply, Salience};
use crate::util::units::parse_bytes;

/// `--compat`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compat {
    /// The llama.cpp fork that TCQ4 comes from: type id 42, file type 40
    #[value(name = "llama.cpp-rrs")]
    LlamaCppRrs,
}

/// `--order`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OrderArg {
    /// As they are
    None,
    /// Dealt over the chunks in a snake, by their contribution to the output
    Zigzag,
    /// Placed one by one where they add least to the expected error
    Balanced,
    /// Sorted by largest magnitude, over all channels
    Rrs,
    /// Sorted by largest magnitude, inside each chunk
    RrsBlock,
    /// Whatever measures best, input by input
    Auto,
}

impl From<OrderArg> for OrderRule {
    fn from(order: OrderArg) -> Self {
        match order {
            OrderArg::None => OrderRule::None,
            OrderArg::Zigzag => OrderRule::Zigzag,
            OrderArg::Balanced => OrderRule::Balanced,
            OrderArg::Rrs => OrderRule::Rrs,
            OrderArg::RrsBlock => OrderRule::RrsBlock,
            OrderArg::Auto => OrderRule::Auto,
        }
    }
}

/// `--preset`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PresetArg {
    /// 6 chunks of text, nearest codes
    Fast,
    /// 32 chunks of text (128 where the model has experts), codes that keep the mean of each output
    Balanced,
    /// 64 chunks of text (128 where the model has experts), codes by GPTQ
    Best,
}

impl From<PresetArg> for Preset {
    fn from(preset: PresetArg) -> Self {
        match preset {
            PresetArg::Fast => Preset::Fast,
            PresetArg::Balanced => Preset::Balanced,
            PresetArg::Best => Preset::Best,
        }
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// This machine's processor
    Cpu,
    /// The first NVIDIA GPU
    Cuda,
}

/// `--rounding`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoundingArg {
    /// The nearest codes
    Nearest,
    /// The nearest, but for flips of single codes that keep the mean of each output
    Greedy,
    /// Each column makes up for the errors of those before it (GPTQ); needs the second moments of all inputs
    Gptq,
    /// GPTQ that also makes up for the rounding of activations (--activations)
    Gptaq,
}

/// `--sensitivity`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SensitivityArg {
    /// KL divergence of the model with one input rounded at a time, on text that calibration has not seen; at most 64 runs of a chunk
    Kld,
    /// Output errors on sample rows, weighed by their share of the residual stream; runs nothing
    Estimate,
}

impl From<SensitivityArg> for SensitivityRule {
    fn from(rule: SensitivityArg) -> Self {
        match rule {
            SensitivityArg::Kld => SensitivityRule::Kld,
            SensitivityArg::Estimate => SensitivityRule::Estimate,
        }
    }
}

impl From<RoundingArg> for RoundingRule {
    fn from(rounding: RoundingArg) -> Self {
        match rounding {
            RoundingArg::Nearest => RoundingRule::Nearest,
            RoundingArg::Greedy => RoundingRule::Greedy,
            RoundingArg::Gptq => RoundingRule::Gptq,
            RoundingArg::Gptaq => RoundingRule::Gptaq,
        }
    }
}

/// `--scales`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScalesArg {
    /// No scales
    None,
    /// (‖w‖² / E[x²])^¼ of each channel
    ClosedForm,
    /// salience^-α, α searched on a grid against the output error
    Awq,
}

impl From<ScalesArg> for ScaleRule {
    fn from(scales: ScalesArg) -> Self {
        match scales {
            ScalesArg::None => ScaleRule::None,
            ScalesArg::ClosedForm => ScaleRule::ClosedForm,
            ScalesArg::Awq => ScaleRule::Awq,
        }
    }
}

/// `--salience`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SalienceArg {
    /// E|x|
    L1,
    /// E[x²]
    L2,
    /// max|x|
    Max,
    /// max x - min x
    Range,
    /// Real-PRAQ: by what each input adds to the outputs after the activation function
    Praq,
    /// Robust-PRAQ: the same under noise
    RobustPraq,
    /// E|x|, the error weighted by FastRPRAQ's importance of each output
    FastPraq,
    /// GWH-PRAQ: E|x|, the error weighted by each output after the activation function
    GwhPraq,
    /// GWH-PRAQ, second version: half l1 and half praq, the error weighted more sharply
    GwhPraqV2,
}

impl From<SalienceArg> for Salience {
    fn from(salience: SalienceArg) -> Self {
        match salience {
            SalienceArg::L1 => Salience::MeanAbs,
            SalienceArg::L2 => Salience::MeanSq,
            SalienceArg::Max => Salience::Max,
            SalienceArg::Range => Salience::Range,
            SalienceArg::Praq => Salience::Praq,
            SalienceArg::RobustPraq => Salience::RobustPraq,
            SalienceArg::FastPraq => Salience::FastPraq,
            SalienceArg::GwhPraq => Salience::GwhPraq,
            SalienceArg::GwhPraqV2 => Salience::GwhBlend,
        }
    }
}

/// `--perm-apply`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ApplyArg {
    /// The run time gathers the activations
    Runtime,
    /// Neighbouring weights are reordered, where that is exact
    Fold,
}

impl From<ApplyArg> for Apply {
    fn from(apply: ApplyArg) -> Self {
        match apply {
            ApplyArg::Runtime => Apply::Runtime,
            ApplyArg::Fold => Apply::Fold,
        }
    }
}

/// `--type` of `dequantize`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FloatType {
    /// Half precision
    F16,
    /// bfloat16
    Bf16,
    /// Single precision
    F32,
}

impl From<FloatType> for GgmlType {
    fn from(ty: FloatType) -> Self {
        match ty {
            FloatType::F16 => GgmlType::F16,
            FloatType::Bf16 => GgmlType::BF16,
            FloatType::F32 => GgmlType::F32,
        }
    }
}

/// `--tensor-type REGEX=TYPE`
#[derive(Debug, Clone)]
pub(crate) struct TensorRule {
    pub(crate) pattern: Regex,
    pub(crate) ty: GgmlType,
}

impl FromStr for TensorRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, ty) = text.rsplit_once('=').ok_or("expected REGEX=TYPE, for instance 'ffn_down=q8_0'")?;
        let pattern = Regex::new(pattern).map_err(|e| e.to_string())?;
        Ok(Self { pattern, ty: ty.parse::<GgmlType>().map_err(|e| e.to_string())? })
    }
}

/// A number of bytes: `512M`, `4G`, `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text).map(Size).ok_or_else(|| "expected a number and a unit, for instance 4G or 512MiB".into())
    }
}

/// `--rule`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuleArg {
    /// The interval of the difference excludes zero
    Interval,
    /// The perplexities differ by more than `--margin`
    Fixed,
}

/// `--kind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RangesKind {
    /// {"layer_ranges": {name: [min, max]}, "detailed_stats": …}
    ActivationRanges,
    /// {name: {"min", "max"}}
    Minmax,
}

/// `--names`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NamesArg {
    /// As in the file: blk.0.attn_q.weight
    Tensor,
    /// Without the suffix: blk.0.attn_q
    Module,
}

impl From<NamesArg> for Names {
    fn from(names: NamesArg) -> Self {
        match names {
            NamesArg::Tensor => Names::Tensor,
            NamesArg::Module => Names::Module,
        }
    }
}

/// `--format` of `export scales`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScaleFormatArg {
    /// E2M1: absmax / 6
    #[value(name = "fp4")]
    Fp4,
    /// -7..7: absmax / 7
    #[value(name = "int4_sym")]
    Int4Sym,
    /// 0..15: (max - min) / 15, with a zero
    #[value(name = "int4_asym")]
    Int4Asym,
    /// -127..127: absmax / 127
    #[value(name = "int8_sym")]
    Int8Sym,
}

impl From<ScaleFormatArg> for ScaleFormat {
    fn from(format: ScaleFormatArg) -> Self {
        match format {
            ScaleFormatArg::Fp4 => ScaleFormat::Fp4,
            ScaleFormatArg::Int4Sym => ScaleFormat::Int4Sym,
            ScaleFormatArg::Int4Asym => ScaleFormat::Int4Asym,
            ScaleFormatArg::Int8Sym => ScaleFormat::Int8Sym,
        }
    }
}

/// A share between 0 and 1, both excluded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Share(pub(crate) f64);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.parse().ok().filter(|share| *share > 0.0 && *share < 1.0);
        share.map(Self).ok_or_else(|| "expected a number between 0 and 1, for instance 0.95".into())
    }
}

/// A margin: a finite number that is not negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Margin(pub(crate) f64);

impl FromStr for Margin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let margin = text.parse().ok().filter(|margin: &f64| *margin >= 0.0 && margin.is_finite());
        margin.map(Self).ok_or_else(|| "expected a number of 0 or more, for instance 0.05".into())
    }
}

/// A number that is neither NaN nor infinite.
pub(crate) fn finite(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|value| value.is_finite()).ok_or_else(|| format!("`{text}` is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_margins_are_numbers_in_their_range() {
        assert!("0.9".parse::<Share>().is_ok() && "0".parse::<Margin>().is_ok());
        assert!(["0", "1", "-0.5", "nan", "95%"].iter().all(|text| text.parse::<Share>().is_err()));
        assert!(["-0.1", "inf", "NaN", ""].iter().all(|text| text.parse::<Margin>().is_err()));
    }

    #[test]
    fn tensor_rules_split_at_the_last_equals_sign() {
        let rule: TensorRule = "blk\\.(0|1)=?\\.ffn=q8_0".parse().unwrap();
        assert_eq!(rule.ty, GgmlType::Q8_0);
        assert!(rule.pattern.is_match("blk.0.ffn_up.weight"));
        assert!("ffn".parse::<TensorRule>().is_err());
        assert!("(=q8_0".parse::<TensorRule>().is_err());
        assert!("ffn=q99".parse::<TensorRule>().is_err());
    }
}
