//! Which type each tensor takes so that a model of a given size loses least. Losses and sizes come from elsewhere; here they are weighed.

use serde::{Deserialize, Serialize};

use super::allocate::{Choice, allocate};

/// A type that a tensor could take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// ggml's name of the type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Bytes of the tensor in it.
    pub bytes: u64,
    /// Squared error of the tensor's outputs relative to their squares.
    pub error: f64,
    /// What the model loses: nats of KL divergence where sensitivities were measured, in no unit where they were estimated.
    pub loss: f64,
}

/// What a tensor could take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidates {
    /// The tensor.
    pub tensor: String,
    /// The number of weights.
    pub weights: u64,
    /// Loss of the model for each unit of the tensor's relative output error.
    pub sensitivity: f64,
    /// The types, the smallest first.
    pub candidates: Vec<Candidate>,
}

/// What a tensor takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeChoice {
    /// The tensor.
    pub tensor: String,
    /// What it takes.
    #[serde(flatten)]
    pub chosen: Candidate,
    /// Bits a weight.
    pub bits: f64,
    /// Loss of the model for each unit of the tensor's relative output error.
    pub sensitivity: f64,
    /// Loss saved for each bit a weight of the whole model that was spent on more than the smallest type; where nothing was spent, the most that
    /// any larger type would have saved. Nothing where there is no larger type.
    pub gain_per_bit: Option<f64>,
}

/// The types of all tensors that had a choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeChoices {
    /// Bits a weight over the whole model, at most.
    pub target_bpw: f64,
    /// Bits a weight over the whole model.
    pub bpw: f64,
    /// The sum of the losses with the smallest types.
    pub loss_smallest: f64,
    /// The sum of the losses with the chosen types.
    pub loss: f64,
    /// No choice within the target loses less than this.
    pub lower_bound: f64,
    /// The tensors, in the order of the model.
    pub tensors: Vec<TypeChoice>,
}

/// The rest of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Whole {
    /// Weights of all tensors.
    pub weights: u64,
    /// Bytes of the tensors that have no choice.
    pub fixed_bytes: u64,
}

impl Whole {
    fn bpw(self, bytes: u64) -> f64 {
        (self.fixed_bytes + bytes) as f64 * 8.0 / self.weights.max(1) as f64
    }
}

impl TypeChoices {
    /// Chooses a type for each tensor so that the sum of the losses is least and the model has at most `target_bpw` bits a weight.
    ///
    /// # Errors
    /// The least possible bits a weight, where the target is below them.
    pub fn choose(tensors: &[Candidates], whole: Whole, target_bpw: f64) -> Result<Self, f64> {
        let item = |of: &Candidates| of.candidates.iter().map(|c| Choice { size: c.bytes, loss: c.loss }).collect();
        let items: Vec<Vec<Choice>> = tensors.iter().map(item).collect();
        let bytes = (target_bpw * whole.weights as f64 / 8.0).floor() as u64;
        let smallest = || tensors.iter().map(|of| of.candidates.iter().map(|c| c.bytes).min().unwrap_or(0)).sum();
        let budget = bytes.checked_sub(whole.fixed_bytes).ok_or_else(|| whole.bpw(smallest()))?;
        let found = allocate(&items, budget).map_err(|least| whole.bpw(least))?;
        let choice = |(of, &chosen): (&Candidates, &usize)| TypeChoice {
            tensor: of.tensor.clone(),
            chosen: of.candidates[chosen].clone(),
            bits: of.candidates[chosen].bytes as f64 * 8.0 / of.weights.max(1) as f64,
            sensitivity: of.sensitivity,
            gain_per_bit: gain_per_bit(of, chosen, whole),
        };
        Ok(Self {
            target_bpw,
            bpw: whole.bpw(found.size),
            loss_smallest: tensors.iter().map(|of| first(of).loss).sum(),
            loss: found.loss,
            lower_bound: found.lower_bound,
            tensors: tensors.iter().zip(&found.chosen).map(choice).collect(),
        })
    }
}

/// The candidate of least size.
fn first(of: &Candidates) -> &Candidate {
    of.candidates.iter().min_by_key(|candidate| candidate.bytes).unwrap_or(&of.candidates[0])
}

fn gain_per_bit(of: &Candidates, chosen: usize, whole: Whole) -> Option<f64> {
    let smallest = first(of);
    let gain = |other: &Candidate| {
        let bits = (other.bytes - smallest.bytes) as f64 * 8.0 / whole.weights.max(1) as f64;
        (bits > 0.0).then(|| (smallest.loss - other.loss) / bits)
    };
    gain(&of.candidates[chosen]).or_else(|| of.candidates.iter().filter_map(gain).max_by(f64::total_cmp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, weights: u64, losses: [f64; 3]) -> Candidates {
        let types = [("tcq4_k32", 4.625), ("q6_K", 6.5625), ("f16", 16.0)];
        let candidate = |((ty, bits), loss): ((&str, f64), f64)| Candidate {
            ty: ty.into(),
            bytes: (weights as f64 * bits / 8.0) as u64,
            error: loss / 2.0,
            loss,
        };
        Candidates {
            tensor: name.into(),
            weights,
            sensitivity: 2.0,
            candidates: types.into_iter().zip(losses).map(candidate).collect(),
        }
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let tensors = [tensor("a", 4096, [0.5, 0.1, 0.0]), tensor("b", 4096, [0.3, 0.02, 0.0])];
        let whole = Whole { weights: 3 * 4096, fixed_bytes: 2 * 4096 };
        let least = (2.0 * 4.625 + 16.0) / 3.0;
        let choose = |bpw: f64| TypeChoices::choose(&tensors, whole, bpw);
        let types = |bpw: f64| choose(bpw).unwrap().tensors.into_iter().map(|t| t.chosen.ty).collect::<Vec<_>>();
        assert_eq!(choose(least - 0.001), Err(least));
        assert_eq!(choose(1.0), Err(least), "less than what is fixed");
        assert_eq!(types(least), ["tcq4_k32", "tcq4_k32"]);
        let one = choose(least + 0.65).unwrap();
        assert_eq!(types(least + 0.65), ["q6_K", "tcq4_k32"]);
        assert!((one.bpw - (least + 1.9375 / 3.0)).abs() < 1e-12 && (one.loss - 0.4).abs() < 1e-12, "{one:?}");
        assert_eq!((one.loss_smallest, one.tensors[0].bits), (0.8, 6.5625));
        let gain = |at: usize| one.tensors[at].gain_per_bit.unwrap();
        assert!((gain(0) - 0.4 / (1.9375 / 3.0)).abs() < 1e-9 && (gain(1) - 0.28 / (1.9375 / 3.0)).abs() < 1e-9);
        assert_eq!(types(16.0), ["f16", "f16"]);
    }
}
