//! Proves a TCQ4 file sound, and measures it against its source. Reads all of it; changes nothing.

use std::collections::BTreeMap;

use half::f16;
use serde::Serialize;

use super::decode::TcqTensor;
use super::hash::tensor_sha256;
use super::keys::{hash_key, permutations};
use super::parts::check_whole;
use super::units::{cut, in_order, run_all};
use super::{is_tcq4, marks, record};
use crate::error::{ConvertError, Error, ModelError, Result};
use crate::gguf::{Source, TensorInfo};
use crate::math::Permutation;
use crate::quant::Transform;
use crate::tcq::Codec;
use crate::util::progress::{Progress, Unit};

/// What verification found of one tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorReport {
    /// The tensor.
    pub name: String,
    /// ggml's name of its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Number of weights.
    pub weights: u64,
    /// Whether a run-time permutation is recorded for it.
    pub permuted: bool,
    /// Whether its bytes and permutation are those that were hashed when the file was made; `None` if no hash is recorded.
    pub hash_matches: Option<bool>,
    /// Squared error relative to the squared weights of the source, after the recorded scales and permutations; `None` if not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_rel: Option<f64>,
}

/// What verification found.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// Every tensor, in file order.
    pub tensors: Vec<TensorReport>,
    /// Number of TCQ4 tensors, all of whose tiles decode to finite weights.
    pub tcq4_tensors: u64,
    /// Number of permutations, all bijections of the right length.
    pub permutations: u64,
    /// Number of tensors whose hash is recorded and matches.
    pub hashes: u64,
    /// Number of tensors with an activation path of their own.
    pub marks: u64,
}

/// Reads the whole file and checks everything that can be wrong with it.
///
/// # Errors
/// The first defect: a tensor of unknown type, a permutation that is none, an activation path that is none, a tile that does not decode, a value that is not finite, a hash that differs.
pub fn verify(file: &Source, codec: Codec, progress: &dyn Progress) -> Result<Verification> {
    file.check_types()?;
    check_whole(file)?;
    let permutations = permutations(file)?;
    for tensor in permutations.keys() {
        check_permuted_type(file, tensor)?;
    }
    let marks = marks::check(file)?;
    progress.begin("verify", file.tensors().iter().map(|t| t.bytes).sum(), Unit::Bytes);
    let one = |tensor: &TensorInfo| {
        if progress.interrupted() {
            return Err(Error::Interrupted);
        }
        let report = verify_tensor(file, tensor, permutations.get(&tensor.name), codec)?;
        progress.advance(tensor.bytes);
        Ok(report)
    };
    let tensors = in_order(file.tensors(), one);
    progress.end();
    let tensors = tensors?;
    Ok(Verification {
        tcq4_tensors: file.tensors().iter().filter(|t| is_tcq4(file, t)).count() as u64,
        permutations: permutations.len() as u64,
        hashes: tensors.iter().filter(|t| t.hash_matches == Some(true)).count() as u64,
        marks: marks.tensors.len() as u64,
        tensors,
    })
}

/// A permutation in the file is applied to activations at run time, so it must belong to a TCQ4 tensor.
fn check_permuted_type(file: &Source, name: &str) -> Result<()> {
    match file.tensor(name) {
        Some(tensor) if !is_tcq4(file, tensor) => {
            let problem = format!("the tensor is {}, and only TCQ4 tensors can be permuted", tensor.ty);
            Err(ConvertError::Permutation { path: file.path().to_path_buf(), tensor: name.to_string(), problem }.into())
        }
        _ => Ok(()),
    }
}

fn verify_tensor(
    file: &Source,
    tensor: &TensorInfo,
    permutation: Option<&Permutation>,
    codec: Codec,
) -> Result<TensorReport> {
    let data = file.data(tensor);
    let recorded = file.metadata().get_str(&hash_key(&tensor.name));
    let hash_matches = recorded.map(|recorded| *recorded == tensor_sha256(data, permutation));
    if hash_matches == Some(false) {
        let problem = "its bytes or its permutation are not those that were written".into();
        return Err(
            ConvertError::Damaged { path: file.path().to_path_buf(), tensor: tensor.name.clone(), problem }.into()
        );
    }
    if is_tcq4(file, tensor) || tensor.ty.is_float() {
        check_values(file, tensor, codec)?;
    }
    file.release(tensor, 0..data.len());
    let permuted = permutation.is_some();
    Ok(TensorReport {
        name: tensor.name.clone(),
        ty: file.type_name(tensor),
        weights: tensor.elements(),
        permuted,
        hash_matches,
        error_rel: None,
    })
}

/// Decodes every row and refuses values that are not finite.
fn check_values(file: &Source, tensor: &TensorInfo, codec: Codec) -> Result<()> {
    let reader = RowReader::open(file, tensor, codec)?;
    let mut values = Vec::new();
    for unit in cut([(1, tensor.rows(), tensor.columns())]) {
        reader.read(unit.first, unit.rows, &mut values)?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let (row, column) = (unit.first + at as u64 / tensor.columns(), at as u64 % tensor.columns());
            let (path, tensor) = (file.path().to_path_buf(), tensor.name.clone());
            return Err(ModelError::NotFinite { path, tensor, row, column, value: values[at] }.into());
        }
    }
    Ok(())
}

/// Reads rows of a float or TCQ4 tensor.
enum RowReader<'a> {
    Plain(&'a Source, &'a TensorInfo),
    Tiles(TcqTensor<'a>, usize),
}

impl<'a> RowReader<'a> {
    fn open(file: &'a Source, tensor: &'a TensorInfo, codec: Codec) -> Result<Self> {
        if is_tcq4(file, tensor) {
            Ok(Self::Tiles(TcqTensor::open(file, tensor, codec)?, tensor.columns() as usize))
        } else {
            Ok(Self::Plain(file, tensor))
        }
    }

    fn read(&self, first: u64, rows: u64, values: &mut Vec<f32>) -> Result<()> {
        match self {
            Self::Plain(file, tensor) => {
                values.resize((rows * tensor.columns()) as usize, 0.0);
                file.read_rows(tensor, first, values)
            }
            Self::Tiles(tiles, columns) => {
                values.resize(rows as usize * columns, 0.0);
                tiles.rows(first, rows, values)
            }
        }
    }
}

/// As [`verify`], and measures the error of every TCQ4 tensor against `source`, to which the recorded scales and permutations are applied.
///
/// # Errors
/// Those of [`verify`]; tensors that the source lacks or that have another shape there.
pub fn verify_against(file: &Source, source: &Source, codec: Codec, progress: &dyn Progress) -> Result<Verification> {
    let mut verification = verify(file, codec, progress)?;
    let transforms = record::read(file, &permutations(file)?)?;
    let pairs = pairs(file, source)?;
    let units = cut(pairs.iter().map(|(tensor, _)| (1, tensor.rows(), tensor.columns())));
    let readers = pairs.iter().map(|(tensor, _)| TcqTensor::open(file, tensor, codec)).collect::<Result<Vec<_>>>()?;
    let identity = Transform::default();
    let errors = run_all(
        &units,
        "compare",
        progress,
        |unit| unit.rows * pairs[unit.tensor].0.columns() * size_of::<f16>() as u64,
        |unit| {
            let (tensor, original) = pairs[unit.tensor];
            let count = (unit.rows * tensor.columns()) as usize;
            let (mut decoded, mut wanted) = (vec![0.0; count], vec![0.0; count]);
            readers[unit.tensor].rows(unit.first, unit.rows, &mut decoded)?;
            let transform = transforms.get(&tensor.name).unwrap_or(&identity);
            super::encode::read_transformed(source, original, transform, unit.first, &mut wanted)?;
            Ok((unit.tensor, squared_error(&decoded, &wanted)))
        },
    )?;
    let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (tensor, (error, weight)) in errors {
        let sum = sums.entry(&pairs[tensor].0.name).or_default();
        *sum = (sum.0 + error, sum.1 + weight);
    }
    for report in &mut verification.tensors {
        report.error_rel =
            sums.get(report.name.as_str()).map(|(error, weight)| if *weight > 0.0 { error / weight } else { 0.0 });
    }
    Ok(verification)
}

/// The TCQ4 tensors of `file` with their originals.
fn pairs<'a>(file: &'a Source, source: &'a Source) -> Result<Vec<(&'a TensorInfo, &'a TensorInfo)>> {
    let tensors = file.tensors().iter().filter(|t| is_tcq4(file, t));
    let pair = |tensor: &'a TensorInfo| match source.tensor(&tensor.name) {
        Some(original) if original.dims == tensor.dims => Ok((tensor, original)),
        other => {
            let found = other.map_or("no such tensor".to_string(), |t| format!("shape {:?}", t.dims));
            let (path, other) = (source.path().to_path_buf(), file.path().to_path_buf());
            let expected = format!("shape {:?}", tensor.dims);
            Err(ConvertError::AnotherModel { path, other, tensor: tensor.name.clone(), expected, found }.into())
        }
    };
    tensors.map(pair).collect()
}

/// Sums of squares of the differences and of the wanted values.
fn squared_error(decoded: &[f32], wanted: &[f32]) -> (f64, f64) {
    let pairs = decoded.iter().zip(wanted);
    pairs.fold((0.0, 0.0), |(error, weight), (&d, &w)| {
        let (d, w) = (f64::from(d), f64::from(w));
        ((d - w).mul_add(d - w, error), w.mul_add(w, weight))
    })
}
