//! The salience of an input group's channels, from statistics and sample rows; what is missing is replaced by the next simpler measure, and said.

use super::praq::{mean_abs, normalised};
use super::weigh::in_attention;
use super::{Salience, praq, robust};
use crate::calib::SampleRows;
use crate::error::Result;
use crate::gguf::TensorInfo;
use crate::model::InputGroup;
use crate::quant::evidence::Evidence;
use crate::quant::study::{Ground, Study, experts, sampled_rows};

/// The share of PRAQ in the second version of GWH-PRAQ.
const BLEND: f64 = 0.5;

/// The salience of each channel of a group.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::quant) struct Found {
    pub(in crate::quant) values: Vec<f64>,
    /// What it is.
    pub(in crate::quant) followed: Salience,
    /// Why that is not what was asked for, or not all of it.
    pub(in crate::quant) fallback: Option<String>,
}

impl Found {
    fn new(followed: Salience, values: &[f64]) -> Self {
        Self { values: values.to_vec(), followed, fallback: None }
    }

    fn instead(mut self, reason: &str) -> Self {
        self.fallback = Some(match self.fallback {
            Some(first) => format!("{reason}; {first}"),
            None => reason.to_string(),
        });
        self
    }
}

impl Ground<'_> {
    /// What AWQ's search would follow in a group; nothing if there is no search.
    pub(in crate::quant) fn followed_salience(
        &self,
        group: &InputGroup,
        measurable: bool,
        study: &Study,
    ) -> Result<Option<Found>> {
        match self.followed() {
            Some(wanted) if measurable && group.producer.why_not_scaled().is_none() => {
                self.salience(&study.evidence, &study.outcome.tensors, wanted).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The salience of a group's channels.
    fn salience(&self, evidence: &Evidence, tensors: &[String], wanted: Salience) -> Result<Found> {
        let found = match wanted {
            Salience::MeanAbs => absolute(evidence),
            Salience::MeanSq => Found::new(wanted, &evidence.channels.mean_sq),
            Salience::Max => largest(evidence),
            Salience::Range => match &evidence.range {
                Some(range) => Found::new(wanted, range),
                None => largest(evidence).instead("the statistics have no smallest and largest inputs: max|x| instead"),
            },
            Salience::FastPraq | Salience::GwhPraq => Found { followed: wanted, ..absolute(evidence) },
            Salience::Praq | Salience::RobustPraq => self.praq(evidence, tensors, wanted)?,
            Salience::GwhBlend => {
                let (awq, praq) = (absolute(evidence), self.praq(evidence, tensors, Salience::Praq)?);
                let spread = normalised(&awq.values).unwrap_or_else(|| vec![1.0; awq.values.len()]);
                let values = spread.iter().zip(&praq.values).map(|(a, p)| (1.0 - BLEND) * a + BLEND * p).collect();
                Found { values, followed: wanted, fallback: praq.fallback.or(awq.fallback) }
            }
        };
        let uses_function = wanted.weighs_outputs() || matches!(wanted, Salience::Praq | Salience::RobustPraq);
        let guesses = uses_function && self.gates.unknown() && tensors.iter().any(|name| !in_attention(name));
        Ok(if guesses {
            found.instead("the activation function of this architecture is not known: outputs count as they are")
        } else {
            found
        })
    }

    /// Real-PRAQ or Robust-PRAQ: the mean over the group's tensors of their importances, each on the scale from 0.1 to 10.
    fn praq(&self, evidence: &Evidence, tensors: &[String], wanted: Salience) -> Result<Found> {
        let mut sums = vec![0.0; evidence.channels.mean_sq.len()];
        let (mut count, mut reasons) = (0u32, Vec::new());
        for name in tensors {
            let Some(importance) = self.tensor_importance(evidence, name, wanted == Salience::RobustPraq)? else {
                reasons.push(format!("`{name}` has no sample rows and takes no part"));
                continue;
            };
            let spread = normalised(&importance).unwrap_or_else(|| {
                reasons.push(format!("the importances of `{name}` are all alike or not finite: ones"));
                vec![1.0; importance.len()]
            });
            sums.iter_mut().zip(spread).for_each(|(sum, value)| *sum += value);
            count += 1;
        }
        if count == 0 {
            return Ok(absolute(evidence).instead("no sample rows: E|x| instead"));
        }
        for sum in &mut sums {
            *sum /= f64::from(count);
        }
        let fallback = (!reasons.is_empty()).then(|| reasons.join("; "));
        Ok(Found { values: sums, followed: wanted, fallback })
    }

    /// The importances of one tensor's input channels, its experts weighted by their sample rows; nothing without sample rows.
    fn tensor_importance(&self, evidence: &Evidence, name: &str, robust: bool) -> Result<Option<Vec<f64>>> {
        let attention = in_attention(name);
        if let (true, false, Some(measured)) = (attention, robust, &evidence.mean_abs) {
            return Ok(Some(measured.clone()));
        }
        let entry = self.statistics.and_then(|statistics| statistics.entries.get(name));
        let Some(rows) = entry.and_then(|entry| entry.rows.as_ref()) else { return Ok(None) };
        let Some(tensor) = self.weights.source.tensor(name) else { return Ok(None) };
        let (mut total, mut tokens) = (vec![0.0; rows.columns], 0);
        for expert in experts(tensor, rows) {
            let inputs = inputs(rows, expert, name, robust);
            let own = inputs[0].len() / rows.columns.max(1);
            let importance = if attention {
                mean_abs(&inputs.concat(), rows.columns)
            } else {
                self.input_importance(tensor, expert.unwrap_or(0), &inputs)?
            };
            total.iter_mut().zip(importance).for_each(|(sum, value)| *sum += own as f64 * value);
            tokens += own;
        }
        for sum in &mut total {
            *sum /= tokens.max(1) as f64;
        }
        Ok((tokens > 0).then_some(total))
    }

    /// Σ_n E|f(z_n)|·|w_nj| of one matrix, averaged over `inputs` (each a number of rows).
    fn input_importance(&self, tensor: &TensorInfo, matrix: u32, inputs: &[Vec<f32>]) -> Result<Vec<f64>> {
        let columns = tensor.columns() as usize;
        let rows = tensor.rows() / tensor.matrices();
        let first = u64::from(matrix) * rows;
        let bias = self.bias(tensor, matrix)?;
        let parts = self.weights.blocks_of(tensor, first..first + rows, |at, values| {
            let start = (at - first) as usize;
            let bias = bias.as_deref().map(|bias| &bias[start..start + values.len() / columns]);
            praq::inputs(values, columns, inputs, bias, |row| self.gates.after(&tensor.name, (start + row) as u64))
        })?;
        let mut total = vec![0.0; columns];
        for part in parts {
            total.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        Ok(total)
    }
}

/// The rows that enter one matrix: once as they are, or as often as noise is drawn.
fn inputs(rows: &SampleRows, expert: Option<u32>, name: &str, robust: bool) -> Vec<Vec<f32>> {
    let rows = sampled_rows(rows, expert);
    if robust { robust::draws(&rows, &format!("{name} {}", expert.unwrap_or(0))) } else { vec![rows] }
}

/// E|x|, or `E[x²]` where that was not measured.
fn absolute(evidence: &Evidence) -> Found {
    match &evidence.mean_abs {
        Some(measured) => Found::new(Salience::MeanAbs, measured),
        None => Found::new(Salience::MeanSq, &evidence.channels.mean_sq)
            .instead("the statistics have no sums of |x|: E[x²] instead"),
    }
}

/// max|x|, or `E[x²]` where that was not measured.
fn largest(evidence: &Evidence) -> Found {
    match &evidence.mean_abs {
        Some(_) => Found::new(Salience::Max, &evidence.channels.abs_max),
        None => Found::new(Salience::MeanSq, &evidence.channels.mean_sq)
            .instead("the statistics have no largest inputs: E[x²] instead"),
    }
}
