//! The steps of the pipeline, each of which says what it needs to know of the model's activations, and what it did.
//!
//! Life cycle: a recipe lists its steps ([`Recipe::steps`](super::recipe::Recipe::steps)). What they need together decides what is measured, before
//! anything else is done; what they cannot do without and nobody can measure is refused then. A step on a whole input group (scale, order) is
//! taken by [`Step::prepare`], in the order of the list, with no weight changed. Steps on rows (rotate, encode, round) are taken while rows are
//! encoded. All are pure: the same numbers give the same result, which goes into the record of the group or the tensor. What a step could
//! not do is a fallback there, with the reason.
//!
//! A further method is a type that implements [`Step`] and its line in the list.

use std::fmt;
use std::ops::BitOr;

use serde::{Serialize, Serializer};

use super::recipe::RoundingRule;
use super::settings::{Orders, Scales};
use super::study::Bench;
use crate::tcq::Encoder;

/// What is to be known about the inputs of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs(u8);

impl Needs {
    /// Nothing but the weights.
    pub const NOTHING: Needs = Needs(0);
    /// Largest magnitude, mean magnitude and mean square of every channel.
    pub const CHANNELS: Needs = Needs(1);
    /// The mean of every channel.
    pub const MEANS: Needs = Needs(2);
    /// Some inputs themselves, kept to measure output errors on.
    pub const ROWS: Needs = Needs(4);
    /// E[x xᵀ].
    pub const SECOND_MOMENTS: Needs = Needs(8);

    /// Every need and what it is called.
    const NAMES: [(Needs, &'static str); 4] = [
        (Needs::CHANNELS, "channel statistics"),
        (Needs::MEANS, "channel means"),
        (Needs::ROWS, "sample rows"),
        (Needs::SECOND_MOMENTS, "second moments"),
    ];

    /// Whether all of `other` is in it.
    pub fn covers(self, other: Needs) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(self, other: Needs) -> Needs {
        Needs(self.0 & !other.0)
    }

    /// What each of them is called.
    pub fn names(self) -> Vec<&'static str> {
        Self::NAMES.into_iter().filter(|(need, _)| self.covers(*need)).map(|(_, name)| name).collect()
    }
}

impl BitOr for Needs {
    type Output = Needs;

    fn bitor(self, other: Needs) -> Needs {
        Needs(self.0 | other.0)
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names();
        f.pad(&if names.is_empty() { "nothing".to_owned() } else { names.join(", ") })
    }
}

impl Serialize for Needs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}

/// The kinds of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Channel scales, folded into what makes the activation.
    Scale,
    /// The order of the channels.
    Order,
    /// The Hadamard transform of 256 columns.
    Rotate,
    /// Scales and zero points of the tiles, and their nearest codes.
    Encode,
    /// The choice of codes by what they do to the output.
    Round,
}

impl Kind {
    /// The option that chooses among the steps of this kind; the rotation belongs to the format.
    pub fn option(self) -> Option<&'static str> {
        match self {
            Kind::Scale => Some("--scales"),
            Kind::Order => Some("--order"),
            Kind::Rotate => None,
            Kind::Encode => Some("--encoder"),
            Kind::Round => Some("--rounding"),
        }
    }
}

/// One step, as a recipe chose it.
pub trait Step {
    /// What kind of step it is.
    fn kind(&self) -> Kind;

    /// What was chosen, in the word of the option.
    fn choice(&self) -> &'static str;

    /// What it uses.
    fn needs(&self) -> Needs {
        Needs::NOTHING
    }

    /// What it cannot do without: a part of [`Step::needs`].
    fn requires(&self) -> Needs {
        self.needs()
    }

    /// Takes the step for an input group, and records it there. Steps on rows have nothing to do here.
    fn prepare(&self, _bench: &mut Bench<'_>) {}
}

impl Step for Scales {
    fn kind(&self) -> Kind {
        Kind::Scale
    }

    fn choice(&self) -> &'static str {
        match self {
            Scales::None => "none",
            Scales::ClosedForm => "closed-form",
            Scales::Awq { .. } => "awq",
        }
    }

    fn needs(&self) -> Needs {
        match self {
            Scales::None => Needs::NOTHING,
            Scales::ClosedForm => Needs::CHANNELS,
            Scales::Awq { .. } => Needs::CHANNELS | Needs::ROWS,
        }
    }

    /// Without sample rows AWQ takes the closed form.
    fn requires(&self) -> Needs {
        if *self == Scales::None { Needs::NOTHING } else { Needs::CHANNELS }
    }

    fn prepare(&self, bench: &mut Bench<'_>) {
        bench.choose_scale(*self);
    }
}

impl Step for Orders {
    fn kind(&self) -> Kind {
        Kind::Order
    }

    fn choice(&self) -> &'static str {
        match self {
            Orders::Fixed(order) => order.name(),
            Orders::Auto => "auto",
            Orders::Given(_) => "given",
        }
    }

    fn needs(&self) -> Needs {
        match self {
            Orders::Given(_) | Orders::Fixed(super::permute::Order::None) => Needs::NOTHING,
            Orders::Fixed(_) => Needs::CHANNELS,
            Orders::Auto => Needs::CHANNELS | Needs::ROWS,
        }
    }

    /// The structure of the model gives an order too.
    fn requires(&self) -> Needs {
        Needs::NOTHING
    }

    fn prepare(&self, bench: &mut Bench<'_>) {
        bench.choose_order(self);
    }
}

/// The Hadamard transform that the format has.
#[derive(Debug, Clone, Copy)]
pub struct Rotation;

impl Step for Rotation {
    fn kind(&self) -> Kind {
        Kind::Rotate
    }

    fn choice(&self) -> &'static str {
        "fwht-256"
    }
}

impl Step for Encoder {
    fn kind(&self) -> Kind {
        Kind::Encode
    }

    fn choice(&self) -> &'static str {
        match self {
            Encoder::Parity => "parity",
            Encoder::Default => "default",
            Encoder::Weighted => "weighted",
        }
    }

    fn needs(&self) -> Needs {
        if *self == Encoder::Weighted { Needs::SECOND_MOMENTS } else { Needs::NOTHING }
    }
}

impl Step for RoundingRule {
    fn kind(&self) -> Kind {
        Kind::Round
    }

    fn choice(&self) -> &'static str {
        match self {
            RoundingRule::Nearest => "nearest",
            RoundingRule::Greedy => "greedy",
            RoundingRule::Gptq => "gptq",
            RoundingRule::Gptaq => "gptaq",
        }
    }

    fn needs(&self) -> Needs {
        match self {
            RoundingRule::Nearest => Needs::NOTHING,
            RoundingRule::Greedy => Needs::MEANS,
            RoundingRule::Gptq => Needs::SECOND_MOMENTS,
            RoundingRule::Gptaq => Needs::SECOND_MOMENTS | Needs::ROWS,
        }
    }

    /// Without sample rows GPTAQ is GPTQ.
    fn requires(&self) -> Needs {
        if *self == RoundingRule::Gptaq { Needs::SECOND_MOMENTS } else { self.needs() }
    }
}

/// What one step did to one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRecord {
    /// The kind of step.
    pub step: Kind,
    /// What the recipe asks for, in the word of the option.
    pub asked: &'static str,
    /// What was done, in the same words.
    pub done: &'static str,
    /// The exponent of AWQ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// What errors were measured on: `weights`, `sample-rows`, `second-moment`, `mean`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measure: Option<&'static str>,
    /// The squared relative error without the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<f64>,
    /// The squared relative error with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<f64>,
    /// Why the step could not be taken as asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

impl StepRecord {
    /// A step that did what it should.
    pub fn of(step: &dyn Step) -> Self {
        let choice = step.choice();
        Self {
            step: step.kind(),
            asked: choice,
            done: choice,
            alpha: None,
            measure: None,
            before: None,
            after: None,
            fallback: None,
        }
    }

    /// With a fallback: what was done instead, and why.
    #[must_use]
    pub fn instead(mut self, done: &'static str, because: impl Into<String>) -> Self {
        (self.done, self.fallback) = (done, Some(because.into()));
        self
    }

    /// With errors: on what they were measured, without the step, and with it.
    #[must_use]
    pub fn measured(mut self, measure: &'static str, before: Option<f64>, after: f64) -> Self {
        (self.measure, self.before, self.after) = (Some(measure), before, Some(after));
        self
    }

    /// Whether something else was done than asked for.
    pub fn fell_back(&self) -> bool {
        self.fallback.is_some() && self.done != self.asked
    }
}
