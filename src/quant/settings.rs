//! What may be asked of the preparation.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::activation::Activations;
use super::permute::Order;
pub use super::salience::Salience;
use super::step::Step;
use crate::math::Permutation;
use crate::tcq::Codec;

/// Which channel scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// None.
    None,
    /// (‖w‖² / `E[x²]`)^¼.
    ClosedForm,
    /// salience^-α, with the α in 0, 1/steps, …, 1 that measures best.
    Awq {
        /// What the scale follows.
        salience: Salience,
        /// How many steps the exponent's range is cut into; 20 gives 21 candidates.
        steps: u32,
    },
}

/// Which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Orders {
    /// The same rule for every group.
    Fixed(Order),
    /// Whatever measures best, group by group.
    Auto,
    /// Read from a file, by tensor; applied at run time.
    Given(BTreeMap<String, Permutation>),
}

/// How orders are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Apply {
    /// By the runtime.
    #[default]
    Runtime,
    /// Folded into the neighbouring tensors; what cannot be folded keeps its order.
    Fold,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The tensors that become TCQ4.
    pub targets: BTreeSet<String>,
    /// Which channel scales.
    pub scales: Scales,
    /// Which order.
    pub orders: Orders,
    /// How orders are applied.
    pub apply: Apply,
    /// The activation path that the objective assumes.
    pub activations: Activations,
    /// The codec that the objective quantises with.
    pub codec: Codec,
}

impl Settings {
    /// Whether weights decide about scales or orders.
    pub(super) fn chooses(&self) -> bool {
        self.scales != Scales::None || !matches!(self.orders, Orders::Given(_) | Orders::Fixed(Order::None))
    }

    /// The steps on input groups, in the order in which they are taken.
    pub(super) fn steps(&self) -> [&dyn Step; 2] {
        [&self.scales, &self.orders]
    }
}
