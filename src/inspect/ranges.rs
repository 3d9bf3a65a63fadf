//! Ranges of activations, one of each weight's whole input, as quantisers of activations exchange them, and the scales that follow from them.
//!
//! Two kinds of file are written and read: `activation_ranges.json` (`{"layer_ranges": {name: [min, max]}, …}`) and `ranges_minmax.json`
//! (`{name: {"min", "max"}}`). Names stand with or without `.weight`; both find a tensor. What has no partner is reported, never dropped silently.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::calib::{ChannelStats, Statistics};
use crate::error::{Error, ExportError, Result};

/// The smallest scale.
const FLOOR: f64 = 1e-10;
/// What the reader of `activation_ranges.json` takes for granted; recorded because it asks for them.
const PERCENTILE: f64 = 99.9;
const SMOOTH_FACTOR: f64 = 0.8;

/// The smallest and largest value of an input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// The smallest.
    pub min: f32,
    /// The largest.
    pub max: f32,
}

impl Range {
    /// The largest magnitude.
    pub fn abs_max(self) -> f64 {
        f64::from(self.min.abs().max(self.max.abs()))
    }
}

/// The ranges of a model's weights, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranges {
    /// Each weight with the range of its input.
    pub by_name: BTreeMap<String, Range>,
    /// Weights whose range is only known to be symmetric: -max |x| to max |x|.
    pub symmetric: Vec<String>,
    /// Weights whose input was never seen (experts without tokens); they have no range.
    pub unseen: Vec<String>,
}

/// How names stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// As tensors are called: `blk.0.attn_q.weight`.
    Tensor,
    /// As modules are called: `blk.0.attn_q`.
    Module,
}

impl Names {
    fn of(self, tensor: &str) -> &str {
        match self {
            Names::Tensor => tensor,
            Names::Module => without_suffix(tensor),
        }
    }
}

/// A name without `.weight`.
fn without_suffix(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

impl Ranges {
    /// The ranges that `statistics`, read from `path`, know: measured ones, or symmetric ones where only the largest magnitudes are there.
    ///
    /// # Errors
    /// [`ExportError::NotMeasured`] where there is neither.
    pub fn of(statistics: &Statistics, path: &Path) -> Result<Self> {
        let mut ranges = Self::default();
        for (name, entry) in &statistics.entries {
            if !entry.ranged && !entry.complete {
                let (path, tensor) = (path.to_path_buf(), name.clone());
                return Err(ExportError::NotMeasured { path, tensor, what: "smallest and largest inputs" }.into());
            }
            if entry.rows_seen() == 0 || entry.columns == 0 {
                ranges.unseen.push(name.clone());
                continue;
            }
            if !entry.ranged {
                ranges.symmetric.push(name.clone());
            }
            ranges.by_name.insert(name.clone(), whole_range(entry));
        }
        Ok(ranges)
    }

    /// The content of `activation_ranges.json`.
    pub fn activation_ranges(&self, names: Names) -> Value {
        let (mut layers, mut details) = (Map::new(), Map::new());
        for (name, range) in &self.by_name {
            let name = names.of(name);
            let abs_max = range.abs_max();
            layers.insert(name.to_owned(), json!([range.min, range.max]));
            let detail = json!({
                "min": range.min,
                "max": range.max,
                "absmax": abs_max as f32,
                "fp4_scale": abs_max / 6.0,
                "int4_scale": abs_max / 7.0,
            });
            details.insert(name.to_owned(), detail);
        }
        json!({ "layer_ranges": layers, "percentile": PERCENTILE, "smooth_factor": SMOOTH_FACTOR, "detailed_stats": details })
    }

    /// The content of `ranges_minmax.json`.
    pub fn min_max(&self, names: Names) -> Value {
        let entry = |(name, range): (&String, &Range)| (names.of(name).to_owned(), json!(range));
        Value::Object(self.by_name.iter().map(entry).collect())
    }

    /// Reads either kind of file.
    ///
    /// # Errors
    /// What cannot be read; [`ExportError::Ranges`] for what is neither kind, and for ranges that are none.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let refuse = |what: String| Error::from(ExportError::Ranges { path: path.to_path_buf(), what });
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        let top = value.as_object().ok_or_else(|| refuse("it is no object".into()))?;
        let layers = match top.get("layer_ranges") {
            Some(layers) => layers.as_object().ok_or_else(|| refuse("layer_ranges is no object".into()))?,
            None => top,
        };
        let mut ranges = Self::default();
        for (name, value) in layers {
            let range = range_of(value).map_err(|what| refuse(format!("`{name}` {what}")))?;
            ranges.by_name.insert(name.clone(), range);
        }
        if ranges.by_name.is_empty() {
            return Err(refuse("it has no ranges".into()));
        }
        Ok(ranges)
    }

    /// Finds the range of each tensor, by its name with and without `.weight`; the very name goes first.
    pub fn matched<'a>(&self, tensors: impl IntoIterator<Item = &'a str>) -> Matched {
        let mut by_stem: BTreeMap<&str, &String> = BTreeMap::new();
        for name in self.by_name.keys() {
            by_stem.entry(without_suffix(name)).or_insert(name);
        }
        let mut matched = Matched::default();
        let mut used: Vec<&String> = Vec::new();
        for tensor in tensors {
            let exact = self.by_name.get_key_value(tensor).map(|(name, _)| name);
            match exact.or_else(|| by_stem.get(without_suffix(tensor)).copied()) {
                Some(name) => {
                    matched.ranges.insert(tensor.to_owned(), self.by_name[name]);
                    used.push(name);
                }
                None => matched.tensors_without_range.push(tensor.to_owned()),
            }
        }
        matched.unmatched_ranges = self.by_name.keys().filter(|name| !used.contains(name)).cloned().collect();
        matched
    }
}

/// Ranges with the tensors of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Matched {
    /// By tensor.
    pub ranges: BTreeMap<String, Range>,
    /// Names in the file that no tensor has.
    pub unmatched_ranges: Vec<String>,
    /// Tensors that the file does not know.
    pub tensors_without_range: Vec<String>,
}

fn whole_range(entry: &ChannelStats) -> Range {
    let channels = (0..entry.columns).map(|j| {
        let symmetric = entry.max_abs(j);
        entry.range(j).unwrap_or((-symmetric, symmetric))
    });
    let (min, max) =
        channels.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), (min, max)| (low.min(min), high.max(max)));
    Range { min, max }
}

/// A range as either file has it.
fn range_of(value: &Value) -> Result<Range, &'static str> {
    let ends = match value {
        Value::Array(ends) if ends.len() == 2 => ends[0].as_f64().zip(ends[1].as_f64()),
        Value::Object(ends) => ends.get("min").and_then(Value::as_f64).zip(ends.get("max").and_then(Value::as_f64)),
        _ => None,
    };
    let (min, max) = ends.ok_or("is neither [min, max] nor {\"min\", \"max\"}")?;
    let (min, max) = (min as f32, max as f32);
    if !min.is_finite() || !max.is_finite() {
        return Err("is beyond single precision");
    }
    if min > max {
        return Err("has a min above its max");
    }
    Ok(Range { min, max })
}

/// What activations are quantised to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleFormat {
    /// E2M1, ±6: scale absmax / 6.
    Fp4,
    /// -7..=7: scale absmax / 7.
    Int4Sym,
    /// 0..=15: scale (max - min) / 15, zero -min / scale.
    Int4Asym,
    /// -127..=127: scale absmax / 127.
    Int8Sym,
}

/// The scale of one input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scale {
    /// The value of one step, at least 1e-10.
    pub scale: f64,
    /// The code of the value 0, not rounded; only of asymmetric formats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero: Option<f64>,
}

impl ScaleFormat {
    /// The scale for inputs in `range`.
    pub fn scale(self, range: Range) -> Scale {
        let symmetric = |steps: f64| Scale { scale: (range.abs_max() / steps).max(FLOOR), zero: None };
        match self {
            ScaleFormat::Fp4 => symmetric(6.0),
            ScaleFormat::Int4Sym => symmetric(7.0),
            ScaleFormat::Int8Sym => symmetric(127.0),
            ScaleFormat::Int4Asym => {
                let (min, max) = (f64::from(range.min), f64::from(range.max));
                let scale = ((max - min) / 15.0).max(FLOOR);
                Scale { scale, zero: Some(-min / scale) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(entry: ChannelStats) -> Statistics {
        Statistics { entries: [("blk.0.attn_q.weight".to_owned(), entry)].into(), ..Statistics::default() }
    }

    /// Two channels that saw two rows: -1 to 3, and 0.5 to 2.
    fn entry() -> ChannelStats {
        let mut entry = ChannelStats::new(1, 2);
        entry.counts = vec![2];
        (entry.min, entry.max, entry.abs_max) = (vec![-1.0, 0.5], vec![3.0, 2.0], vec![3.0, 2.0]);
        entry
    }

    #[test]
    fn ranges_are_measured_or_symmetric_or_refused() {
        let of = |entry| Ranges::of(&statistics(entry), Path::new("s.gguf"));
        let measured = of(entry()).unwrap();
        assert_eq!(measured.by_name["blk.0.attn_q.weight"], Range { min: -1.0, max: 3.0 });
        assert!(measured.symmetric.is_empty());
        let symmetric = of(ChannelStats { ranged: false, ..entry() }).unwrap();
        assert_eq!(symmetric.by_name["blk.0.attn_q.weight"], Range { min: -3.0, max: 3.0 });
        assert_eq!(symmetric.symmetric, ["blk.0.attn_q.weight"]);
        let nothing = of(ChannelStats { ranged: false, complete: false, ..entry() }).unwrap_err();
        assert!(nothing.to_string().contains("has no smallest and largest inputs of `blk.0.attn_q.weight`"));
        let unseen = of(ChannelStats::new(1, 2)).unwrap();
        assert_eq!((unseen.by_name.len(), unseen.unseen.len()), (0, 1));
    }

    #[test]
    fn files_come_back_with_either_kind_of_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let ranges = Ranges::of(&statistics(entry()), &path).unwrap();
        for (names, key) in [(Names::Tensor, "blk.0.attn_q.weight"), (Names::Module, "blk.0.attn_q")] {
            for value in [ranges.activation_ranges(names), ranges.min_max(names)] {
                std::fs::write(&path, value.to_string()).unwrap();
                let back = Ranges::read(&path).unwrap();
                assert_eq!(back.by_name.keys().collect::<Vec<_>>(), [key]);
                let matched = back.matched(["blk.0.attn_q.weight", "blk.1.attn_q.weight"]);
                assert_eq!(matched.ranges["blk.0.attn_q.weight"], Range { min: -1.0, max: 3.0 });
                assert_eq!(matched.tensors_without_range, ["blk.1.attn_q.weight"]);
                assert!(matched.unmatched_ranges.is_empty());
            }
        }
        let details = &ranges.activation_ranges(Names::Module)["detailed_stats"]["blk.0.attn_q"];
        assert_eq!(
            details,
            &json!({ "min": -1.0, "max": 3.0, "absmax": 3.0, "fp4_scale": 0.5, "int4_scale": 3.0 / 7.0 })
        );
    }

    #[test]
    fn the_very_name_goes_first_and_the_rest_is_reported() {
        let range = |max| Range { min: 0.0, max };
        let by_name = [("a".into(), range(1.0)), ("a.weight".into(), range(2.0)), ("z".into(), range(3.0))].into();
        let matched = Ranges { by_name, ..Ranges::default() }.matched(["a.weight"]);
        assert_eq!((matched.ranges["a.weight"].max, matched.unmatched_ranges), (2.0, vec!["a".into(), "z".into()]));
    }

    #[test]
    fn what_is_no_file_of_ranges_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let message = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Ranges::read(&path).unwrap_err().to_string()
        };
        assert!(message("").contains("EOF"));
        assert!(message("[]").contains("it is no object"));
        assert!(message("{}").contains("it has no ranges"));
        assert!(message(r#"{"layer_ranges": 3}"#).contains("layer_ranges is no object"));
        assert!(message(r#"{"a": [1]}"#).contains("`a` is neither"));
        assert!(message(r#"{"a": {"min": 2, "max": 1}}"#).contains("`a` has a min above its max"));
        assert!(message(r#"{"a": [0, 1e40]}"#).contains("beyond single precision"));
    }

    #[test]
    fn scales_by_hand() {
        let range = Range { min: -2.0, max: 5.0 };
        let scale = |format: ScaleFormat| format.scale(range);
        assert_eq!(scale(ScaleFormat::Fp4), Scale { scale: 5.0 / 6.0, zero: None });
        assert_eq!(scale(ScaleFormat::Int4Sym), Scale { scale: 5.0 / 7.0, zero: None });
        assert_eq!(scale(ScaleFormat::Int8Sym), Scale { scale: 5.0 / 127.0, zero: None });
        assert_eq!(scale(ScaleFormat::Int4Asym), Scale { scale: 7.0 / 15.0, zero: Some(2.0 / (7.0 / 15.0)) });
        let nothing = Range { min: 0.0, max: 0.0 };
        assert_eq!(ScaleFormat::Int4Sym.scale(nothing).scale, 1e-10);
        assert_eq!(ScaleFormat::Int4Asym.scale(nothing), Scale { scale: 1e-10, zero: Some(-0.0) });
    }
}
