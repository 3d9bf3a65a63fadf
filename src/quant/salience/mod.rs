//! What AWQ takes for the importance of an input channel, and how much each output channel counts in the error that its search measures.
//!
//! The formulas ([`praq`], [`robust`]) are pure functions of numbers. All but E|x|, `E[x²]` and the extremes need sample rows; where those are missing the
//! next simpler measure takes their place, and the outcome says so.

pub(super) mod measure;
pub mod praq;
pub mod robust;
pub(super) mod weigh;

pub use praq::Output;

use serde::{Deserialize, Serialize};

/// What AWQ takes for the importance of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Salience {
    /// E|x|.
    #[default]
    #[serde(rename = "l1")]
    MeanAbs,
    /// `E[x²]`.
    #[serde(rename = "l2")]
    MeanSq,
    /// max|x|.
    #[serde(rename = "max")]
    Max,
    /// max x - min x.
    #[serde(rename = "range")]
    Range,
    /// Real-PRAQ (also Full-PRAQ): Σ_n E|f(z_n)|·|w_nj| in feed-forward layers, E|x| in attention, on a scale from 0.1 to 10.
    #[serde(rename = "praq")]
    Praq,
    /// Robust-PRAQ: the same, averaged over inputs with noise, and searched on inputs with half of it.
    #[serde(rename = "robust-praq")]
    RobustPraq,
    /// E|x|, with output channels weighted by FastRPRAQ's importance.
    #[serde(rename = "fast-praq")]
    FastPraq,
    /// GWH-PRAQ, first version: E|x|, with the output channels of feed-forward layers weighted by E|f(z_n)|.
    #[serde(rename = "gwh-praq")]
    GwhPraq,
    /// GWH-PRAQ, second version: half E|x| and half Real-PRAQ, with output channels weighted by a softmax of E|f(z_n)|.
    #[serde(rename = "gwh-praq-v2")]
    GwhBlend,
}

impl Salience {
    /// All of them.
    pub const ALL: [Salience; 9] = [
        Salience::MeanAbs,
        Salience::MeanSq,
        Salience::Max,
        Salience::Range,
        Salience::Praq,
        Salience::RobustPraq,
        Salience::FastPraq,
        Salience::GwhPraq,
        Salience::GwhBlend,
    ];

    /// Whether outputs count by their importance in the error that a search measures.
    pub fn weighs_outputs(self) -> bool {
        matches!(self, Salience::FastPraq | Salience::GwhPraq | Salience::GwhBlend)
    }

    /// The name on the command line and in records.
    pub fn name(self) -> &'static str {
        match self {
            Salience::MeanAbs => "l1",
            Salience::MeanSq => "l2",
            Salience::Max => "max",
            Salience::Range => "range",
            Salience::Praq => "praq",
            Salience::RobustPraq => "robust-praq",
            Salience::FastPraq => "fast-praq",
            Salience::GwhPraq => "gwh-praq",
            Salience::GwhBlend => "gwh-praq-v2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_the_command_line_use_one_name() {
        for salience in Salience::ALL {
            assert_eq!(serde_json::to_string(&salience).unwrap(), format!("\"{}\"", salience.name()));
        }
    }
}
