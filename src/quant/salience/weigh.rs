//! How much each output counts in the objective of a search, and where in a model an activation function follows.

use std::collections::BTreeMap;
use std::ops::Range;

use super::praq::{self, Output, THRESHOLD};
use super::{Salience, robust};
use crate::error::Result;
use crate::gguf::TensorInfo;
use crate::math::dots::product;
use crate::model::{Arch, Axis, Function, InputGroup, Producer, Role, TensorName};
use crate::quant::objective::sample_of;
use crate::quant::settings::Scales;
use crate::quant::study::Ground;

/// The temperature of the second version of GWH-PRAQ.
const TEMPERATURE: f64 = 2.0;

/// The rows of each tensor that an activation function follows, and which it is.
pub(in crate::quant) struct Gates {
    function: Function,
    rows: BTreeMap<String, Vec<Range<u64>>>,
}

impl Gates {
    /// Reads off what makes the activations of feed-forward networks.
    pub(in crate::quant) fn new(groups: &[InputGroup], arch: &Arch) -> Self {
        let mut rows: BTreeMap<String, Vec<Range<u64>>> = BTreeMap::new();
        for group in groups {
            let Producer::Ffn { nonlinear, .. } = &group.producer else { continue };
            for span in nonlinear.iter().filter(|span| span.axis == Axis::Rows) {
                rows.entry(span.tensor.clone()).or_default().push(span.first..span.first + span.len);
            }
        }
        Self { function: Function::of(&arch.name), rows }
    }

    /// The function after a row of each matrix of a tensor; none where nothing is known to follow.
    pub(super) fn after(&self, tensor: &str, row: u64) -> Option<Function> {
        let follows = self.rows.get(tensor).is_some_and(|rows| rows.iter().any(|rows| rows.contains(&row)));
        (follows && self.function != Function::Unknown).then_some(self.function)
    }

    /// Whether it is not known what follows the matrices of feed-forward networks.
    pub(super) fn unknown(&self) -> bool {
        self.function == Function::Unknown
    }
}

/// Whether a tensor belongs to attention; everything else counts as feed-forward, as in the original.
pub(super) fn in_attention(tensor: &str) -> bool {
    use Role::{AttnK, AttnOutput, AttnQ, AttnQkv, AttnV};
    matches!(TensorName::parse(tensor).role, AttnQ | AttnK | AttnV | AttnQkv | AttnOutput)
}

impl Ground<'_> {
    /// What AWQ's search follows, if it is asked for.
    pub(super) fn followed(&self) -> Option<Salience> {
        match self.settings.scales {
            Scales::Awq { salience, .. } => Some(salience),
            Scales::None | Scales::ClosedForm => None,
        }
    }

    /// The rows that quantised weights see instead of the sample rows, in a search that is to be robust.
    pub(in crate::quant) fn seen(&self, rows: &[f32], stream: &str) -> Option<Vec<f32>> {
        let name = || format!("robust-praq {stream} search");
        (self.followed() == Some(Salience::RobustPraq)).then(|| robust::noisy(rows, robust::SEARCH_STRENGTH, &name()))
    }

    /// How much the outputs of the sampled rows ([`sample_of`]) of one matrix count, `weights` and the `rows` that enter it given; the mean is 1.
    /// Nothing if they all count alike.
    pub(in crate::quant) fn output_weights(
        &self,
        tensor: &TensorInfo,
        matrix: u32,
        weights: &[f32],
        rows: &[f32],
    ) -> Result<Option<Vec<f32>>> {
        let Some(salience) = self.followed() else { return Ok(None) };
        let attention = in_attention(&tensor.name);
        if !salience.weighs_outputs() || rows.is_empty() || (attention && salience != Salience::FastPraq) {
            return Ok(None);
        }
        let columns = tensor.columns() as usize;
        if attention {
            let mean_abs = praq::mean_abs(rows, columns);
            let importance: Vec<f64> = weights.chunks_exact(columns).map(|w| praq::attention(&mean_abs, w)).collect();
            return Ok(Some(praq::relative(&importance)));
        }
        let mut z = product(weights, rows, columns);
        let bias = self.bias(tensor, matrix)?;
        let input_magnitude = rows.iter().map(|&x| f64::from(x.abs())).sum::<f64>() / rows.len() as f64;
        let per_matrix = (tensor.rows() / tensor.matrices()) as usize;
        let outputs = z.chunks_exact_mut(rows.len() / columns).zip(weights.chunks_exact(columns));
        let one = |(row, (z, w)): (usize, (&mut [f32], &[f32]))| {
            praq::add_bias(z, bias.as_deref(), row);
            let function = self.gates.after(&tensor.name, row as u64);
            match (salience, function) {
                (Salience::FastPraq, Some(_)) => Output::of(z, w).importance(input_magnitude, THRESHOLD),
                (Salience::FastPraq, None) => Output::of(z, w).utility(),
                _ => praq::magnitude(z, function),
            }
        };
        let importance: Vec<f64> = sample_of(per_matrix).zip(outputs).map(one).collect();
        Ok(Some(match salience {
            Salience::GwhBlend => praq::softmax(&importance, TEMPERATURE),
            _ => praq::relative(&importance),
        }))
    }

    /// The bias of one matrix of a weight, if it has one.
    pub(super) fn bias(&self, tensor: &TensorInfo, matrix: u32) -> Result<Option<Vec<f32>>> {
        let name = tensor.name.strip_suffix(".weight").map(|stem| format!("{stem}.bias"));
        let Some(bias) = name.and_then(|name| self.weights.source.tensor(&name)) else { return Ok(None) };
        if bias.columns() != tensor.rows() / tensor.matrices() {
            return Ok(None);
        }
        let mut values = vec![0.0; bias.columns() as usize];
        (self.weights.read)(bias, if bias.rows() > 1 { u64::from(matrix) } else { 0 }, &mut values)?;
        Ok(Some(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Span;

    #[test]
    fn the_function_follows_the_gate_and_nothing_else() {
        let span = |tensor: &str, axis, first, len| Span { tensor: tensor.into(), axis, first, len };
        let nonlinear = vec![span("blk.0.ffn_gate_up_exps.weight", Axis::Rows, 0, 8), span("b", Axis::Columns, 0, 8)];
        let linear = vec![span("blk.0.ffn_gate_up_exps.weight", Axis::Rows, 8, 8)];
        let group = InputGroup {
            key: "blk.0.ffn_down".into(),
            readers: vec!["blk.0.ffn_down_exps.weight".into()],
            columns: 8,
            producer: Producer::Ffn { linear, nonlinear },
            in_stream: false,
        };
        let of = |name: &str| Gates {
            function: Function::of(name),
            ..Gates::new(std::slice::from_ref(&group), &Arch::default())
        };
        let gates = of("llama");
        assert_eq!(gates.after("blk.0.ffn_gate_up_exps.weight", 7), Some(Function::Silu));
        assert_eq!(gates.after("blk.0.ffn_gate_up_exps.weight", 8), None, "the linear half");
        assert_eq!(gates.after("blk.0.ffn_down_exps.weight", 0), None);
        assert_eq!(gates.after("b", 0), None, "a bias is no matrix");
        assert!(of("mamba").unknown() && of("mamba").after("blk.0.ffn_gate_up_exps.weight", 0).is_none());
    }

    #[test]
    fn attention_goes_by_the_name() {
        assert!(in_attention("blk.3.attn_qkv.weight") && in_attention("blk.0.attn_output.weight"));
        assert!(!in_attention("blk.3.ffn_down.weight") && !in_attention("blk.3.something.weight"));
    }
}
