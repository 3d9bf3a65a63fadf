//! The way back: a TCQ4 file as plain floats that any tool reads. Scales stay folded; rotations and permutations are undone.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::decode::TcqTensor;
use super::floats::to_bytes;
use super::is_tcq4;
use super::keys::{permutations, remove_own_keys};
use super::units::{RowUnit, cut, run_all};
use crate::device::DecodeTiles;
use crate::error::{ConvertError, Result};
use crate::gguf::{GgmlType, Metadata, Plan, Source, TensorInfo, TensorSpec, Writer};
use crate::tcq::Codec;
use crate::util::progress::Progress;

/// What [`dequantize`] wrote.
#[derive(Debug, Clone, Serialize)]
pub struct Dequantized {
    /// The file.
    pub output: PathBuf,
    /// Number of tensors that were TCQ4.
    pub tensors: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Writes `file` to `output` with its TCQ4 tensors as `ty` (F16, BF16 or F32), everything else as it is. Tiles are decoded on a device if there is one; the
/// bytes are the same.
///
/// # Errors
/// A file without TCQ4 tensors; weights beyond the range of `ty`; what [`Writer`] refuses.
pub fn dequantize(
    file: &Source,
    output: &Path,
    ty: GgmlType,
    force: bool,
    (codec, device): (Codec, Option<&dyn DecodeTiles>),
    progress: &dyn Progress,
) -> Result<Dequantized> {
    let tensors = file.tensors();
    let count = tensors.iter().filter(|t| is_tcq4(file, t)).count() as u64;
    if count == 0 {
        return Err(ConvertError::NoTcq4 { path: file.path().to_path_buf() }.into());
    }
    let permutations = permutations(file)?;
    let spec = |t: &TensorInfo| TensorSpec {
        name: t.name.clone(),
        dims: t.dims.clone(),
        ty: if is_tcq4(file, t) { ty } else { t.ty },
    };
    let plan = Plan::new(&plain_metadata(file.metadata(), ty), tensors.iter().map(spec).collect(), file.alignment())
        .map_err(|e| e.at(output))?;
    let inputs: Vec<&Path> = file.shards().collect();
    let writer = Writer::create(output, &plan, force, &inputs)?;
    let units = cut(tensors.iter().map(|t| (1, t.rows(), t.columns())));
    let row_bytes = |tensor: usize| plan.tensor_bytes(tensor) / tensors[tensor].rows();
    // Telling the two formats apart takes a look at the whole tensor, so it is done once.
    let open = |tensor| is_tcq4(file, tensor).then(|| TcqTensor::open(file, tensor, codec)).transpose();
    let readers = tensors.iter().map(open).collect::<Result<Vec<_>>>()?;
    let decode = |unit: &RowUnit| {
        let tensor = &tensors[unit.tensor];
        let source_row = tensor.bytes / tensor.rows();
        let range = (unit.first * source_row) as usize..((unit.first + unit.rows) * source_row) as usize;
        let bytes = if let Some(reader) = readers[unit.tensor] {
            let mut values = vec![0.0; (unit.rows * tensor.columns()) as usize];
            let permutation = permutations.get(&tensor.name);
            reader.spatial_rows((unit.first, unit.rows), permutation, device, &mut values)?;
            to_bytes(&values, ty).ok_or_else(|| out_of_range(file, tensor, ty))?
        } else {
            file.data(tensor)[range.clone()].to_vec()
        };
        writer.write(unit.tensor, unit.first * row_bytes(unit.tensor), &bytes)?;
        file.release(tensor, range);
        Ok(())
    };
    run_all(&units, "dequantize", progress, |unit| unit.rows * row_bytes(unit.tensor), decode)?;
    writer.commit()?;
    Ok(Dequantized { output: output.to_path_buf(), tensors: count, bytes: plan.total_bytes() })
}

/// The metadata of the source without what only TCQ4 files have.
fn plain_metadata(metadata: &Metadata, ty: GgmlType) -> Metadata {
    let mut plain = metadata.clone();
    remove_own_keys(&mut plain);
    let file_type: u32 = match ty {
        GgmlType::F32 => 0,
        GgmlType::BF16 => 32,
        _ => 1,
    };
    plain.set("general.file_type", file_type);
    plain
}

fn out_of_range(file: &Source, tensor: &TensorInfo, ty: GgmlType) -> crate::Error {
    ConvertError::OutOfRange { path: file.path().to_path_buf(), tensor: tensor.name.clone(), ty: ty.to_string() }.into()
}
