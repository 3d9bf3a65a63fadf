//! The statistics file: an imatrix file in GGUF, as llama-imatrix writes it and llama-quantize reads it, with further tensors of ours.
//!
//! For each weight `NAME`: `NAME.in_sum2` (Σx²) and `NAME.counts` as in llama.cpp; `NAME.in_absmax`, `NAME.in_sum`, `NAME.in_sumabs`,
//! `NAME.in_min` and `NAME.in_max` of the same shape (the last two lack in files of older versions); `NAME.in_rows` (sample rows, f16 unless a value does not fit) and, where there are experts, `NAME.in_rows_matrix`. Rows shared by an input
//! group are stored with its first weight. What llama.cpp does not know it ignores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use xxhash_rust::xxh3::Xxh3;

use super::legacy;
use super::stats::{ChannelStats, SampleRows, Statistics};
use crate::error::ModelError;
use crate::gguf::{GgmlType, Metadata, Plan, Source, TensorInfo, TensorSpec, Writer};
use crate::{Error, Result};

/// The version of what is added to llama.cpp's format.
const VERSION: u32 = 1;

/// Bytes hashed at the beginning, middle and end of each tensor for the fingerprint.
const SAMPLE: usize = 4096;

/// Names a model by its tensors: their names, types and shapes, and a sample of their values. Reads a few pages of each tensor.
pub fn fingerprint(source: &Source) -> String {
    let mut hash = Xxh3::new();
    for tensor in source.tensors() {
        let data = source.data(tensor);
        hash.update(tensor.name.as_bytes());
        hash.update(&[0]);
        hash.update(&tensor.ty.0.to_le_bytes());
        tensor.dims.iter().for_each(|dim| hash.update(&dim.to_le_bytes()));
        for range in sampled(data.len()) {
            hash.update(&data[range]);
        }
    }
    format!("{:032x}", hash.digest128())
}

/// The bytes of a tensor of this length that its fingerprint depends on, in their order.
pub fn sampled(len: usize) -> [Range<usize>; 3] {
    let last = len.saturating_sub(SAMPLE);
    [0, last / 2, last].map(|start| start..len.min(start + SAMPLE))
}

/// Writes `stats` to `path`, which must not exist unless `force`, and must not be one of `inputs`.
///
/// # Errors
/// If the file exists or cannot be written, or a sum is beyond f32.
pub fn save(path: &Path, stats: &Statistics, force: bool, inputs: &[&Path]) -> Result<()> {
    let tensors = tensors(path, stats)?;
    let specs = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let plan = Plan::new(&metadata(stats)?, specs, 32).map_err(|defect| defect.at(path))?;
    let writer = Writer::create(path, &plan, force, inputs)?;
    for (index, (_, bytes)) in tensors.iter().enumerate() {
        writer.write(index, 0, bytes)?;
    }
    writer.commit()
}

/// Reads a statistics file of ours or of llama-imatrix, GGUF or legacy.
///
/// # Errors
/// For files that break their format, lack what belongs together, or hold impossible sums.
pub fn load(path: &Path) -> Result<Statistics> {
    match Source::open(path) {
        Ok(source) => read(path, &source),
        Err(Error::Gguf { defect: crate::error::GgufError::Magic { .. }, .. }) => {
            let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
            Ok(legacy::read(path, &bytes)?)
        }
        Err(error) => Err(error),
    }
}

impl Statistics {
    /// Checks that these statistics can be of the model, and gives entries of flattened experts (as old files have them) their matrices.
    ///
    /// # Errors
    /// [`ModelError::StatisticsOfAnotherModel`] if the fingerprint differs, a tensor is missing, or its input channels differ.
    pub fn adapt(&mut self, model: &Source) -> Result<()> {
        let another =
            |what| Error::from(ModelError::StatisticsOfAnotherModel { path: model.path().to_path_buf(), what });
        let found = fingerprint(model);
        if let Some(expected) = self.fingerprint.as_ref().filter(|expected| **expected != found) {
            return Err(another(format!("its fingerprint is {found}, theirs {expected}")));
        }
        for (name, stats) in &mut self.entries {
            let tensor = model.tensor(name).ok_or_else(|| another(format!("it has no tensor `{name}`")))?;
            let (columns, matrices) = (tensor.columns(), tensor.matrices().max(1));
            if (stats.columns as u64, stats.matrices as u64) == (columns, matrices) {
                continue;
            }
            if stats.matrices != 1 || Some(stats.columns as u64) != columns.checked_mul(matrices) {
                let theirs = format!("{} x {}", stats.matrices, stats.columns);
                return Err(another(format!("`{name}` has {matrices} x {columns} input channels, theirs {theirs}")));
            }
            (stats.columns, stats.matrices) = (columns as usize, matrices as usize);
            stats.counts = vec![stats.counts[0]; stats.matrices];
        }
        Ok(())
    }
}

impl Statistics {
    /// Rounds every number to what [`save`] keeps of it.
    #[must_use]
    pub fn as_kept(mut self) -> Self {
        let mut rounded: Vec<(Arc<SampleRows>, Arc<SampleRows>)> = Vec::new();
        for entry in self.entries.values_mut() {
            entry.counts.iter_mut().for_each(|count| *count = (*count as f32).round() as u64);
            for sum in entry.sum.iter_mut().chain(&mut entry.sum_abs).chain(&mut entry.sum_sq) {
                *sum = f64::from(*sum as f32);
            }
            let Some(rows) = entry.rows.take() else { continue };
            let known = rounded.iter().position(|(old, _)| Arc::ptr_eq(old, &rows)).unwrap_or_else(|| {
                let new =
                    SampleRows { columns: rows.columns, data: kept_values(&rows.data), matrix: rows.matrix.clone() };
                rounded.push((rows, Arc::new(new)));
                rounded.len() - 1
            });
            entry.rows = Some(Arc::clone(&rounded[known].1));
        }
        self
    }
}

/// Sample values as they are kept: halves, unless one of them does not fit.
fn kept_values(values: &[f32]) -> Vec<f32> {
    if fits_f16(values) { values.iter().map(|&value| f16::from_f32(value).to_f32()).collect() } else { values.to_vec() }
}

fn fits_f16(values: &[f32]) -> bool {
    values.iter().all(|value| value.abs() <= f16::MAX.to_f32())
}

fn metadata(stats: &Statistics) -> Result<Metadata> {
    let mut keys = Metadata::new();
    keys.set("general.type", "imatrix");
    keys.set("imatrix.datasets", stats.datasets.as_slice());
    keys.set("imatrix.chunk_count", stats.chunk_count);
    keys.set("imatrix.chunk_size", stats.chunk_size);
    keys.set("tcq4.calibration.version", VERSION);
    if let Some(fingerprint) = &stats.fingerprint {
        keys.set("tcq4.calibration.model", fingerprint.as_str());
    }
    let groups = serde_json::to_string(&stats.groups).map_err(|e| Error::io("statistics", "write")(e.into()))?;
    keys.set("tcq4.calibration.groups", groups.as_str());
    keys.set("tcq4.calibration.rows_held_out", stats.rows_held_out);
    for (key, value) in &stats.notes {
        keys.set(&format!("{NOTE}{key}"), value.as_str());
    }
    Ok(keys)
}

/// What the keys of [`Statistics::notes`] begin with.
const NOTE: &str = "tcq4.calibration.note.";

/// All tensors with their bytes, sorted by weight as llama-imatrix has them.
fn tensors(path: &Path, stats: &Statistics) -> Result<Vec<(TensorSpec, Vec<u8>)>> {
    let mut all = Vec::new();
    for (name, entry) in &stats.entries {
        let (columns, matrices) = (entry.columns as u64, entry.matrices as u64);
        let mut add = |suffix: &str, columns: u64, values: Vec<f32>| {
            if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
                let what = format!("`{name}.{suffix}` would be {bad}");
                return Err(Error::from(ModelError::Statistics { path: path.to_path_buf(), what }));
            }
            all.push(tensor(name, suffix, &[columns, matrices], GgmlType::F32, bytemuck::cast_slice(&values)));
            Ok(())
        };
        let narrow = |sums: &[f64]| sums.iter().map(|&sum| sum as f32).collect::<Vec<f32>>();
        add("counts", 1, entry.counts.iter().map(|&count| count as f32).collect())?;
        add("in_sum2", columns, narrow(&entry.sum_sq))?;
        if entry.complete {
            add("in_absmax", columns, entry.abs_max.clone())?;
            add("in_sum", columns, narrow(&entry.sum))?;
            add("in_sumabs", columns, narrow(&entry.sum_abs))?;
        }
        if entry.ranged {
            add("in_min", columns, zero_where_unseen(entry, &entry.min))?;
            add("in_max", columns, zero_where_unseen(entry, &entry.max))?;
        }
        if let Some(rows) = entry.rows.as_deref().filter(|_| stores_rows(stats, name, entry)) {
            add_rows(&mut all, name, entry, rows);
        }
    }
    Ok(all)
}

/// The values, with zeros for the matrices that saw no row: a file holds finite numbers only.
fn zero_where_unseen(entry: &ChannelStats, values: &[f32]) -> Vec<f32> {
    let seen = |at: usize| entry.counts[at / entry.columns] > 0;
    values.iter().enumerate().map(|(at, &value)| if seen(at) { value } else { 0.0 }).collect()
}

fn add_rows(all: &mut Vec<(TensorSpec, Vec<u8>)>, name: &str, entry: &ChannelStats, rows: &SampleRows) {
    let dims = [rows.columns as u64, rows.len() as u64];
    all.push(if fits_f16(&rows.data) {
        let halves: Vec<f16> = rows.data.iter().map(|&value| f16::from_f32(value)).collect();
        tensor(name, "in_rows", &dims, GgmlType::F16, bytemuck::cast_slice(&halves))
    } else {
        tensor(name, "in_rows", &dims, GgmlType::F32, bytemuck::cast_slice(&rows.data))
    });
    if entry.matrices > 1 {
        all.push(tensor(name, "in_rows_matrix", &dims[1..], GgmlType::I32, bytemuck::cast_slice(&rows.matrix)));
    }
}

/// A tensor with trailing dimensions of 1 left out, as ggml writes it.
fn tensor(name: &str, suffix: &str, dims: &[u64], ty: GgmlType, bytes: &[u8]) -> (TensorSpec, Vec<u8>) {
    let used = dims.iter().rposition(|&dim| dim != 1).map_or(1, |last| last + 1);
    (TensorSpec { name: format!("{name}.{suffix}"), dims: dims[..used].to_vec(), ty }, bytes.to_vec())
}

/// The weight with whose entry the rows of `name` are stored: the first of its group that has the same shape of input.
fn rows_owner<'s>(stats: &'s Statistics, name: &str, entry: &ChannelStats) -> Option<&'s String> {
    let same = |other: &&String| {
        stats.entries.get(*other).is_some_and(|o| (o.matrices, o.columns) == (entry.matrices, entry.columns))
    };
    stats.group_of(name).iter().find(same)
}

fn stores_rows(stats: &Statistics, name: &str, entry: &ChannelStats) -> bool {
    let Some(owner) = rows_owner(stats, name, entry).filter(|owner| *owner != name) else { return true };
    match (&stats.entries[owner].rows, &entry.rows) {
        (Some(theirs), Some(own)) => !(Arc::ptr_eq(theirs, own) || theirs == own),
        _ => true,
    }
}

/// The tensors of one weight, while a file is read.
#[derive(Default)]
struct Parts<'s> {
    by_suffix: BTreeMap<&'s str, &'s TensorInfo>,
}

fn read(path: &Path, source: &Source) -> Result<Statistics> {
    let refuse = |what: String| Error::from(ModelError::Statistics { path: path.to_path_buf(), what });
    let keys = source.metadata();
    let number = |key: &str| keys.get_u64(key).and_then(|n| u32::try_from(n).ok());
    let datasets = keys.get_array("imatrix.datasets").and_then(|array| array.to_string_vec());
    let (Some(chunk_count), Some(chunk_size), Some(datasets)) =
        (number("imatrix.chunk_count"), number("imatrix.chunk_size"), datasets)
    else {
        return Err(refuse("it lacks the imatrix.* keys".into()));
    };
    let mut weights: BTreeMap<&str, Parts<'_>> = BTreeMap::new();
    for tensor in source.tensors() {
        if let Some((weight, suffix)) = tensor.name.rsplit_once('.').filter(|(_, suffix)| SUFFIXES.contains(suffix)) {
            weights.entry(weight).or_default().by_suffix.insert(suffix, tensor);
        }
    }
    let mut stats = Statistics { chunk_count, chunk_size, datasets, ..Statistics::default() };
    for (weight, parts) in &weights {
        let entry = parts.entry(source).map_err(|what| refuse(format!("`{weight}`: {what}")))?;
        stats.entries.insert((*weight).to_owned(), entry);
    }
    if stats.entries.is_empty() {
        return Err(refuse("it has no entries".into()));
    }
    read_extras(&mut stats, keys).map_err(refuse)?;
    share_rows(&mut stats);
    Ok(stats)
}

const SUFFIXES: [&str; 9] =
    ["counts", "in_sum2", "in_absmax", "in_sum", "in_sumabs", "in_min", "in_max", "in_rows", "in_rows_matrix"];

/// What only our own files say.
fn read_extras(stats: &mut Statistics, keys: &Metadata) -> Result<(), String> {
    if keys.get_u64("tcq4.calibration.version").is_some_and(|version| version > u64::from(VERSION)) {
        return Err(format!("it is of a newer version than {VERSION}"));
    }
    stats.fingerprint = keys.get_str("tcq4.calibration.model").map(std::borrow::Cow::into_owned);
    stats.rows_held_out = keys.get_bool("tcq4.calibration.rows_held_out").unwrap_or(false);
    if let Some(groups) = keys.get_str("tcq4.calibration.groups") {
        stats.groups = serde_json::from_str(&groups).map_err(|e| format!("tcq4.calibration.groups: {e}"))?;
    }
    for key in keys.keys() {
        if let (Some(note), Some(value)) = (key.strip_prefix(NOTE), keys.get_str(key)) {
            stats.notes.insert(note.to_owned(), value.into_owned());
        }
    }
    Ok(())
}

/// Gives the weights of a group the rows that are stored with its first.
fn share_rows(stats: &mut Statistics) {
    let shared: Vec<(String, Arc<SampleRows>)> = stats
        .entries
        .iter()
        .filter(|(_, entry)| entry.rows.is_none())
        .filter_map(|(name, entry)| {
            let owner = rows_owner(stats, name, entry)?;
            Some((name.clone(), stats.entries[owner].rows.clone()?))
        })
        .collect();
    for (name, rows) in shared {
        if let Some(entry) = stats.entries.get_mut(&name) {
            entry.rows = Some(rows);
        }
    }
}

impl ChannelStats {
    /// Takes over ranges as a file has them: zeros where a matrix saw no row.
    fn set_ranges(&mut self, min: &[f32], max: &[f32]) -> Result<(), String> {
        for at in (0..min.len()).filter(|at| self.counts[at / self.columns] > 0) {
            if min[at] > max[at] {
                return Err(format!("in_min is {} and in_max {} at {at}", min[at], max[at]));
            }
            (self.min[at], self.max[at]) = (min[at], max[at]);
        }
        self.ranged = true;
        Ok(())
    }
}

impl Parts<'_> {
    fn entry(&self, source: &Source) -> Result<ChannelStats, String> {
        let (Some(sums), Some(counts)) = (self.by_suffix.get("in_sum2"), self.by_suffix.get("counts")) else {
            return Err("in_sum2 and counts belong together".into());
        };
        let matrices = counts.elements() as usize;
        let columns = sums.columns() as usize;
        if matrices == 0 || columns == 0 || columns.checked_mul(matrices).map(|len| len as u64) != Some(sums.elements())
        {
            return Err(format!("in_sum2 has the shape {:?}, counts {:?}", sums.dims, counts.dims));
        }
        let counts = floats(source, counts, true)?;
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        let mut entry = ChannelStats {
            counts: counts.iter().map(|count| count.round() as u64).collect(),
            sum_sq: wide(floats(source, sums, true)?),
            complete: false,
            ranged: false,
            ..ChannelStats::new(matrices, columns)
        };
        let extra = |suffix: &str, positive: bool| match self.by_suffix.get(suffix) {
            Some(tensor) if tensor.dims == sums.dims => floats(source, tensor, positive).map(Some),
            Some(tensor) => Err(format!("{suffix} has the shape {:?}, in_sum2 {:?}", tensor.dims, sums.dims)),
            None => Ok(None),
        };
        if let (Some(abs_max), Some(sum), Some(sum_abs)) =
            (extra("in_absmax", true)?, extra("in_sum", false)?, extra("in_sumabs", true)?)
        {
            (entry.abs_max, entry.sum, entry.sum_abs, entry.complete) = (abs_max, wide(sum), wide(sum_abs), true);
        }
        if let (Some(min), Some(max)) = (extra("in_min", false)?, extra("in_max", false)?) {
            entry.set_ranges(&min, &max)?;
        }
        entry.rows = self.rows(source, &entry)?.map(Arc::new);
        Ok(entry)
    }

    fn rows(&self, source: &Source, entry: &ChannelStats) -> Result<Option<SampleRows>, String> {
        let Some(tensor) = self.by_suffix.get("in_rows") else { return Ok(None) };
        if tensor.columns() != entry.columns as u64 {
            return Err(format!("in_rows has the shape {:?}", tensor.dims));
        }
        let data = floats(source, tensor, false)?;
        let count = data.len() / entry.columns;
        let matrix = match self.by_suffix.get("in_rows_matrix") {
            Some(ids) if ids.ty == GgmlType::I32 && ids.elements() == count as u64 => {
                source.data(ids).chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Some(ids) => return Err(format!("in_rows_matrix has the shape {:?}, type {}", ids.dims, ids.ty)),
            None if entry.matrices == 1 => vec![0; count],
            None => return Err("in_rows without in_rows_matrix".into()),
        };
        if matrix.iter().any(|&m| m as usize >= entry.matrices) {
            return Err("in_rows_matrix names an expert that is not there".into());
        }
        Ok(Some(SampleRows { columns: entry.columns, data, matrix }))
    }
}

/// The values of an F32 (or F16) tensor, all finite, and none negative if they are to be `positive`.
fn floats(source: &Source, tensor: &TensorInfo, positive: bool) -> Result<Vec<f32>, String> {
    if !matches!(tensor.ty, GgmlType::F32 | GgmlType::F16) {
        return Err(format!("`{}` is of type {}", tensor.name, tensor.ty));
    }
    let mut values = vec![0.0; tensor.elements() as usize];
    source.read_rows(tensor, 0, &mut values).map_err(|e| e.to_string())?;
    match values.iter().position(|value| !value.is_finite() || (positive && *value < 0.0)) {
        Some(at) => Err(format!("`{}` has {} at {at}", tensor.name, values[at])),
        None => Ok(values),
    }
}
