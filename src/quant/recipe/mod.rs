//! A recipe: every choice about how weights are prepared and rounded, in one value. Presets are recipes; a TOML file or options change one.
//!
//! A recipe names no files and no tensors. A further choice is a field of the table below, its value in [`BALANCED`], and an option.

mod parse;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::activation::Activations;
use super::permute::Order;
use super::rounding::Rounding;
use super::settings::{Apply, Orders, Salience, Scales, Settings};
use super::step::{Needs, Rotation, Step};
use crate::gguf::GgmlType;
use crate::math::Permutation;
use crate::tcq::{Codec, Encoder};
pub use parse::{Memory, TypeOrAuto};

/// Which channel scales; the parameters of AWQ are choices of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleRule {
    /// None.
    None,
    /// (‖w‖² / `E[x²]`)^¼.
    ClosedForm,
    /// salience^-α, α searched on a grid.
    Awq,
}

/// Which order of the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderRule {
    /// As they are.
    None,
    /// [`Order::Zigzag`].
    Zigzag,
    /// [`Order::Balanced`].
    Balanced,
    /// [`Order::Rrs`].
    Rrs,
    /// [`Order::RrsBlock`].
    RrsBlock,
    /// Whatever measures best, group by group.
    Auto,
}

impl From<OrderRule> for Orders {
    fn from(rule: OrderRule) -> Self {
        Orders::Fixed(match rule {
            OrderRule::None => Order::None,
            OrderRule::Zigzag => Order::Zigzag,
            OrderRule::Balanced => Order::Balanced,
            OrderRule::Rrs => Order::Rrs,
            OrderRule::RrsBlock => Order::RrsBlock,
            OrderRule::Auto => return Orders::Auto,
        })
    }
}

/// How codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoundingRule {
    /// The nearest.
    Nearest,
    /// The nearest, but for flips that keep the mean of each output.
    Greedy,
    /// Error feedback by the second moments of the inputs.
    Gptq,
    /// GPTQ that also makes up for the rounding of activations.
    Gptaq,
}

/// How it is found out which tensors and inputs suffer most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SensitivityRule {
    /// By KL divergence where the model runs, estimated otherwise.
    Auto,
    /// KL divergence of the model with one input rounded at a time.
    Kld,
    /// Output errors on sample rows.
    Estimate,
}

/// How much work goes into the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Little text, nearest codes.
    Fast,
    /// More text, codes that keep the mean of each output.
    Balanced,
    /// Codes by GPTQ.
    Best,
}

/// Makes the recipe, all of whose choices are made, and [`Changes`], none of whose need be, of one table: name, type and, where a type alone lets
/// values through that make no sense, the function that reads it.
macro_rules! recipe {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty $(, $read:literal)?;)+) => {
        /// Every choice about how weights are prepared and rounded.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct Recipe {
            $($(#[doc = $doc])+ pub $name: $type,)+
        }

        /// Choices that replace those of a recipe: what a recipe file or the command line says.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct Changes {
            /// The recipe that is changed.
            pub preset: Option<Preset>,
            $($(#[doc = $doc])+ $(#[serde(deserialize_with = $read)])? pub $name: Option<$type>,)+
        }

        impl Recipe {
            /// This recipe with the choices that `changes` makes.
            #[must_use]
            pub fn with(mut self, changes: &Changes) -> Self {
                $(if let Some(value) = &changes.$name {
                    self.$name.clone_from(value);
                })+
                self
            }
        }
    };
}

recipe! {
    /// Which channel scales.
    scales: ScaleRule;
    /// What AWQ takes for the importance of a channel.
    salience: Salience;
    /// Steps of AWQ's grid over α.
    alpha_grid: u32, "parse::whole::<_, 1, 1000>";
    /// Which order of the channels.
    order: OrderRule;
    /// How orders are applied.
    perm_apply: Apply;
    /// The activation path that measurements assume.
    activations: Activations;
    /// The tile encoder.
    encoder: Encoder;
    /// How codes are chosen.
    rounding: RoundingRule;
    /// What GPTQ adds to the diagonal of a second moment, as a share of its mean.
    damp: f64, "parse::share";
    /// Whether GPTQ rounds the columns with the largest second moments first.
    act_order: bool;
    /// How much of the shrinking of weights is done that GPTAQ asks for against the noise of activations: 0 is none, 1 all.
    shrink: f64, "parse::share";
    /// Rounds of refitting scales and moving single codes after GPTQ.
    refine: u32, "parse::whole::<_, 0, 100>";
    /// Whether blocks are quantised in batches, each measured behind the quantised ones before it.
    sequential: bool;
    /// Blocks of such a batch; 0 for as many as memory holds.
    layer_batch: u32, "parse::whole::<_, 0, 1_000_000>";
    /// Type of the token embedding.
    embedding_type: TypeOrAuto;
    /// Type of the output head, a tied embedding included.
    output_type: TypeOrAuto;
    /// Bits a weight over the whole model up to which linear layers take larger types than TCQ4, where that saves most; 0 for none.
    target_bpw: f64, "parse::share";
    /// The share of the multiply-adds whose inputs, those that suffer most, are marked for INT8 on an INT4 path; 0 for none.
    act_aware: f64, "parse::part";
    /// How it is found out what suffers.
    sensitivity: SensitivityRule;
    /// Chunks of calibration text, at most.
    samples: u32, "parse::whole::<_, 1, 1_000_000>";
    /// What second moments may take of memory; no weight depends on it.
    memory: Memory;
}

/// [`Preset::Balanced`] for a dense model. 32 chunks: four times as many changed nothing (KL divergence .065 and .066 on SmolLM2).
pub const BALANCED: Recipe = Recipe {
    scales: ScaleRule::ClosedForm,
    salience: Salience::MeanSq,
    alpha_grid: 20,
    order: OrderRule::Zigzag,
    perm_apply: Apply::Runtime,
    activations: Activations::Int8,
    encoder: Encoder::Default,
    rounding: RoundingRule::Greedy,
    damp: 0.01,
    act_order: true,
    shrink: 1.0,
    refine: 2,
    sequential: false,
    layer_batch: 0,
    embedding_type: TypeOrAuto(None),
    output_type: TypeOrAuto(None),
    target_bpw: 0.0,
    act_aware: 0.0,
    sensitivity: SensitivityRule::Auto,
    samples: 32,
    memory: Memory(4 << 30),
};

/// [`Preset::Fast`].
pub const FAST: Recipe = Recipe { rounding: RoundingRule::Nearest, samples: 6, ..BALANCED };

/// [`Preset::Best`] for a dense model. Of the output head Q6_K loses a seventh of what the whole model loses then (KL divergence on SmolLM2).
pub const BEST: Recipe =
    Recipe { rounding: RoundingRule::Gptq, samples: 64, output_type: TypeOrAuto(Some(GgmlType::Q8_0)), ..BALANCED };

/// Chunks for models with experts, each of which sees only a part of the text; also of a calibration for its own sake.
pub const MANY_SAMPLES: u32 = 128;

impl Preset {
    /// The recipe, for a model with experts or without.
    pub fn recipe(self, experts: bool) -> Recipe {
        match self {
            Preset::Fast => FAST,
            Preset::Balanced if experts => Recipe { samples: MANY_SAMPLES, ..BALANCED },
            Preset::Best if experts => Recipe { samples: MANY_SAMPLES, ..BEST },
            Preset::Balanced => BALANCED,
            Preset::Best => BEST,
        }
    }
}

impl Recipe {
    /// This recipe where nothing is known about activations: nothing to scale by, no means to keep, and no order unless one is asked for.
    #[must_use]
    pub fn without_statistics(self) -> Self {
        let Self { rounding, .. } = self;
        let rounding = if rounding == RoundingRule::Greedy { RoundingRule::Nearest } else { rounding };
        Self { scales: ScaleRule::None, order: OrderRule::None, rounding, ..self }
    }

    /// The bits a weight that types are chosen for, if they are.
    pub fn target(&self) -> Option<f64> {
        Some(self.target_bpw).filter(|bits| *bits > 0.0)
    }

    /// The share of the multiply-adds that may take INT8 on an INT4 path, if any.
    pub fn marked_share(&self) -> Option<f64> {
        Some(self.act_aware).filter(|share| *share > 0.0)
    }

    /// Whether types or activation paths are chosen by measurement.
    pub fn mixes(&self) -> bool {
        self.target().or(self.marked_share()).is_some()
    }

    /// The recipe without what decides after the weights are prepared: sensitivities do not depend on it.
    #[must_use]
    pub fn unmixed(self) -> Self {
        let Self { embedding_type, output_type, target_bpw, act_aware, sensitivity, .. } = BALANCED;
        Self { embedding_type, output_type, target_bpw, act_aware, sensitivity, ..self }
    }

    /// The channel scales with their parameters.
    fn scale_settings(&self) -> Scales {
        match self.scales {
            ScaleRule::None => Scales::None,
            ScaleRule::ClosedForm => Scales::ClosedForm,
            ScaleRule::Awq => Scales::Awq { salience: self.salience, steps: self.alpha_grid },
        }
    }

    /// Whether codes are chosen with error feedback.
    pub fn feeds_back(&self) -> bool {
        matches!(self.rounding, RoundingRule::Gptq | RoundingRule::Gptaq)
    }

    /// The moves by second moments: those of GPTQ, or none where only the encoder uses them.
    pub fn moves(&self) -> Rounding {
        let descents = if self.feeds_back() { self.refine } else { 0 };
        Rounding { feedback: self.feeds_back(), descents, refit: descents > 0 }
    }

    /// The steps, in the order in which they are taken.
    pub fn steps(&self) -> Vec<Box<dyn Step>> {
        vec![
            Box::new(self.scale_settings()),
            Box::new(Orders::from(self.order)),
            Box::new(Rotation),
            Box::new(self.encoder),
            Box::new(self.rounding),
        ]
    }

    /// What all steps need to know.
    pub fn needs(&self) -> Needs {
        self.steps().iter().fold(Needs::NOTHING, |needs, step| needs | step.needs())
    }

    /// The settings of the preparation; orders that are `given` replace the rule.
    pub fn settings(
        &self,
        targets: BTreeSet<String>,
        given: Option<BTreeMap<String, Permutation>>,
        codec: Codec,
    ) -> Settings {
        Settings {
            targets,
            scales: self.scale_settings(),
            orders: given.map_or_else(|| self.order.into(), Orders::Given),
            apply: self.perm_apply,
            activations: self.activations,
            codec,
        }
    }

    /// The recipe as TOML, which [`Changes::parse`] reads.
    pub fn to_toml(&self) -> String {
        // Plain values in a flat table: there is nothing that TOML could refuse.
        toml::to_string(self).unwrap_or_default()
    }

    /// The recipe as it is recorded in a file: without memory, on which no weight depends, and without chunks, of which the record of the
    /// calibration says how many there were. `order` is "given" where a file gave the orders.
    pub fn to_record(&self, orders_given: bool) -> serde_json::Value {
        let mut record = serde_json::json!({ "tcq4": env!("CARGO_PKG_VERSION") });
        if let (Some(record), Ok(serde_json::Value::Object(own))) = (record.as_object_mut(), serde_json::to_value(self))
        {
            record.extend(own.into_iter().filter(|(key, _)| key != "memory" && key != "samples"));
            if orders_given {
                record.insert("order".into(), "given".into());
            }
        }
        record
    }
}

#[cfg(test)]
mod tests;
