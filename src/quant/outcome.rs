//! What was chosen for each input group, on which grounds, and what could not be done: the record of the preparation.

use serde::Serialize;

use super::permute::Order;
use super::salience::Salience;

/// Where the numbers behind a choice come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grounds {
    /// Activations measured on a calibration text.
    Statistics,
    /// Estimates from the gains of the norms and the norms of the weights.
    Structure,
}

/// How an order is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Applied {
    /// By the runtime, which gathers the activations.
    Runtime,
    /// Folded into the neighbouring tensors.
    Folded,
}

/// An error measured for one candidate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured<T> {
    /// The candidate.
    pub candidate: T,
    /// The relative squared output error; weighted, and not to be compared with others, where the salience weighs outputs.
    pub error: f64,
}

/// The scale of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScaleOutcome {
    /// What the scale follows; none for the closed form, which follows `E[x²]` and the weights.
    pub salience: Option<Salience>,
    /// Why that is not what was asked for, or not all of it.
    pub fallback: Option<String>,
    /// The exponent that AWQ's search chose; none for the closed form.
    pub alpha: Option<f64>,
    /// The smallest factor.
    pub min: f32,
    /// The largest factor.
    pub max: f32,
    /// What the search measured.
    pub tried: Vec<Measured<f64>>,
}

/// What was done with one input group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupOutcome {
    /// The group.
    pub group: String,
    /// Its tensors that become TCQ4.
    pub tensors: Vec<String>,
    /// The number of channels.
    pub columns: u64,
    /// Where the numbers come from.
    pub grounds: Grounds,
    /// The scale, if there is one.
    pub scale: Option<ScaleOutcome>,
    /// Why there is none although one was asked for.
    pub unscaled: Option<String>,
    /// The order.
    pub order: Order,
    /// How it is applied; none for the order as it is.
    pub applied: Option<Applied>,
    /// Why the order asked for was not taken.
    pub unordered: Option<String>,
    /// What `auto` measured.
    pub orders_tried: Vec<Measured<Order>>,
    /// The relative squared output error with everything that was chosen, where it was measured.
    pub error: Option<f64>,
}
