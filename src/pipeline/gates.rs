//! What an output must reach, held against what was measured of it.

use std::fmt;
use std::path::Path;

use serde_json::Value;

use super::plan::Estimate;
use super::spec::{Gates, Limit};
use super::state::Numbers;
use crate::analysis::experts::{Threshold, coverage};
use crate::calib::{Statistics, store};
use crate::error::Result;
use crate::gguf::Source;

/// Why an output is rejected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Failure {
    /// It diverges too far from its source; found and allowed.
    Divergence(Option<f64>, f64),
    /// It has too many bits a weight.
    Bits(f64, f64),
    /// An expert saw too little.
    Experts(Option<f64>, f64),
    /// Something fell back, and the batch is strict.
    Fallbacks,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<f64>| value.map_or("not a number".to_owned(), |value| format!("{value:.6}"));
        match self {
            Failure::Divergence(found, most) => write!(f, "KL divergence {}, at most {most} allowed", shown(found)),
            Failure::Bits(found, most) => write!(f, "{found:.4} bits a weight, at most {most} allowed"),
            Failure::Experts(found, least) => {
                write!(f, "an expert saw {} of an even split, at least {least} asked for", shown(found))
            }
            Failure::Fallbacks => write!(f, "steps fell back, which `strict` refuses"),
        }
    }
}

/// The first gate that does not let the output pass; that of the divergence only where it was `measured`.
pub fn check(gates: &Gates, numbers: &Numbers, measured: bool) -> Option<Failure> {
    let limit = |gate: Option<Limit>| gate.map(Limit::get);
    if let (Some(most), Some(bits)) = (limit(gates.max_bits), numbers.bits_per_weight)
        && bits > most
    {
        return Some(Failure::Bits(bits, most));
    }
    if let Some(least) = limit(gates.min_expert_share)
        && numbers.expert_share.is_none_or(|share| share < least)
    {
        return Some(Failure::Experts(numbers.expert_share, least));
    }
    let (most, found) = (limit(gates.max_kld).filter(|_| measured)?, numbers.kld.map(|(value, _)| value));
    // A divergence that is no number passes no gate.
    let passes = found.is_some_and(|found| found <= most);
    (!passes).then_some(Failure::Divergence(found, most))
}

/// Reads the numbers of the record of `convert` or `quantize`.
pub fn read_record(record: &Value, estimate: &Estimate, numbers: &mut Numbers) {
    numbers.bytes = record["bytes"].as_u64();
    numbers.bits_per_weight = record["bits_per_weight"].as_f64();
    let losses = record["losses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let weights = |loss: &Value| loss["weights"].as_f64().unwrap_or(0.0);
    let all: f64 = losses.iter().map(weights).sum();
    let error: f64 = losses.iter().map(|loss| loss["error_rel"].as_f64().unwrap_or(f64::NAN) * weights(loss)).sum();
    numbers.weight_error = (all > 0.0).then_some(error / all);
    let steps = losses.iter().flat_map(|loss| loss["steps"].as_array().into_iter().flatten());
    numbers.fallbacks = estimate.substitutions + steps.filter(|step| !step["fallback"].is_null()).count() as u64;
}

/// The KL divergence of the record of `eval`, with its standard error.
pub fn divergence(record: &Value) -> Option<(f64, f64)> {
    Some((record["kld"]["value"].as_f64()?, record["kld"]["error"].as_f64()?))
}

/// What the expert that saw least has seen of an even split; 1 for a model without experts, `None` where nothing was measured.
///
/// # Errors
/// What cannot be read.
pub fn expert_share(model: &Path, statistics: Option<&Path>) -> Result<Option<f64>> {
    let source = Source::open(model)?;
    let of = |statistics: &Statistics| coverage(&source, statistics, Threshold::default());
    let rows = match statistics.filter(|path| path.exists()) {
        Some(path) => of(&store::load(path)?),
        None if of(&Statistics::default()).is_empty() => Vec::new(),
        None => return Ok(None),
    };
    let least = rows.iter().map(|row| row.min_share.map(f64::from)).reduce(|a, b| Some(a?.min(b?)));
    Ok(least.unwrap_or(Some(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gate_closes() {
        let limit = |number: f64| Limit::try_from(number).ok();
        let gates =
            Gates { max_kld: limit(0.1), max_bits: limit(5.0), min_expert_share: limit(0.2), ..Gates::default() };
        let good = Numbers {
            bits_per_weight: Some(5.0),
            expert_share: Some(0.2),
            kld: Some((0.1, 0.0)),
            ..Numbers::default()
        };
        let check = |numbers: &Numbers| check(&gates, numbers, true);
        assert_eq!(check(&good), None, "the limits themselves pass");
        let bits = Numbers { bits_per_weight: Some(5.1), ..good.clone() };
        assert_eq!(check(&bits), Some(Failure::Bits(5.1, 5.0)));
        let experts = Numbers { expert_share: None, ..good.clone() };
        assert_eq!(check(&experts), Some(Failure::Experts(None, 0.2)));
        for found in [Some(0.2), Some(f64::NAN), None] {
            let numbers = Numbers { kld: found.map(|value| (value, 0.0)), ..good.clone() };
            assert!(matches!(check(&numbers), Some(Failure::Divergence(..))), "{found:?}");
        }
        assert_eq!(super::check(&gates, &Numbers { kld: None, ..good }, false), None, "not measured yet");
    }

    #[test]
    fn records_are_read() {
        let record = serde_json::json!({
            "bytes": 7, "bits_per_weight": 4.5,
            "losses": [
                { "error_rel": 0.1, "weights": 1, "steps": [{ "step": "scale" }, { "step": "order", "fallback": "no fold" }] },
                { "error_rel": 0.3, "weights": 3 }
            ]
        });
        let mut numbers = Numbers::default();
        let estimate = Estimate {
            bytes: 0,
            bits_per_weight: None,
            work_memory: 0,
            model_bytes: 0,
            runs_text: true,
            second_moments: None,
            separable: true,
            mixes: false,
            samples: 1,
            substitutions: 2,
            seconds: None,
        };
        read_record(&record, &estimate, &mut numbers);
        assert_eq!((numbers.bytes, numbers.fallbacks), (Some(7), 3));
        assert!((numbers.weight_error.unwrap() - 0.25).abs() < 1e-12);
    }
}
