//! How much of a model's output each rounding costs, estimated without running the model: output errors on sample rows, and how much of the residual
//! stream the erring outputs make. Estimates rank; what a rank is worth in nats has to be measured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::activation::Activations;
use super::evidence::Weights;
use super::input::InputRounding;
use super::rounding::importance;
use super::study::{experts, sampled_rows, sampled_weights};
use super::transform::Transform;
use crate::calib::Statistics;
use crate::error::Result;
use crate::gguf::{GgmlType, TensorInfo};
use crate::llama;
use crate::math::dots::product;
use crate::model::mappings::{Meets, meets_stream};
use crate::model::{Role, TensorName};
use crate::tcq::{CHUNK, Codec, TILE_ROWS, Tile};

/// Rows of the token embedding that its energy is measured on.
const EMBEDDING_ROWS: u64 = 256;

/// What rounding does to the outputs of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// The tensor.
    pub tensor: String,
    /// Mean squared output of a token, over all rows (of one expert, where there are several).
    pub energy: f64,
    /// Squared error of the outputs relative to their squares, one for each rounding that was asked for.
    pub errors: Vec<f64>,
    /// What an error of 1 is thought to be of the residual stream, squared and relative: errors times this can be compared between tensors.
    pub influence: f64,
}

/// Measures outputs on the sample rows of statistics.
#[derive(Clone, Copy)]
pub struct Sampler<'a> {
    /// The model.
    pub weights: Weights<'a>,
    /// Sample rows of its inputs.
    pub statistics: &'a Statistics,
    /// What is done to its tensors before they are quantised.
    pub transforms: &'a BTreeMap<String, Transform>,
    /// The codec, for rotations and tiles.
    pub codec: Codec,
}

/// Sample rows and the weight rows that multiply them.
struct Part {
    rows: Vec<f32>,
    weights: Vec<f32>,
    /// E[x²] of each column.
    mean_sq: Vec<f32>,
}

impl Sampler<'_> {
    /// What each activation path costs in the outputs of a tensor whose weights are exact; nothing where there are no sample rows.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn inputs(&self, tensor: &TensorInfo, paths: &[Activations]) -> Result<Option<Sensitivity>> {
        let way = InputRounding::before(Activations::None, self.transforms.get(&tensor.name));
        let rounded = |part: &Part, path: Activations| {
            let (way, columns) = (way.on(path), tensor.columns() as usize);
            let mut rows = vec![0.0; part.rows.len()];
            let pairs = rows.chunks_exact_mut(columns).zip(part.rows.chunks_exact(columns));
            pairs.for_each(|(rounded, row)| way.round_row(self.codec, row, rounded));
            // The error is multiplied, not the rounded row: differences of large outputs would lose digits.
            rows.iter_mut().zip(&part.rows).for_each(|(rounded, row)| *rounded -= row);
            energy(&product(&rows, &part.weights, columns))
        };
        self.measure(tensor, paths, |part, &path| Ok(rounded(part, path)))
    }

    /// What each type costs in the outputs of a tensor whose input is exact; nothing where there are no sample rows. TCQ4 codes are the nearest.
    ///
    /// # Errors
    /// If weights cannot be read, or a type cannot be written.
    pub fn types(&self, tensor: &TensorInfo, types: &[GgmlType]) -> Result<Option<Sensitivity>> {
        self.measure(tensor, types, |part, &ty| {
            let mut error = self.stored(tensor, ty, part)?;
            error.iter_mut().zip(&part.weights).for_each(|(stored, weight)| *stored -= weight);
            Ok(energy(&product(&part.rows, &error, tensor.columns() as usize)))
        })
    }

    /// Weight rows as they come back from a type, in the basis of the model.
    fn stored(&self, tensor: &TensorInfo, ty: GgmlType, part: &Part) -> Result<Vec<f32>> {
        let columns = tensor.columns() as usize;
        if ty.is_float() {
            return Ok(part.weights.clone()); // next to nothing is lost
        }
        let transform = self.transforms.get(&tensor.name).cloned().unwrap_or_default();
        let transform = if ty == GgmlType::TCQ4_K32 { transform } else { transform.without_runtime() };
        let mut rows = part.weights.clone();
        let scale = transform.column_scale.as_deref();
        let order = transform.columns.as_ref().map(|order| (order, order.inverse()));
        let mut gathered = vec![0.0; columns];
        for row in rows.chunks_exact_mut(columns) {
            if let Some(scale) = scale {
                row.iter_mut().zip(scale).for_each(|(value, factor)| *value *= factor);
            }
            if let Some((order, _)) = &order {
                order.gather(row, &mut gathered);
                row.copy_from_slice(&gathered);
            }
        }
        self.there_and_back(ty, &importance(&part.mean_sq, &transform), &mut rows)?;
        for row in rows.chunks_exact_mut(columns) {
            if let Some((_, back)) = &order {
                back.gather(row, &mut gathered);
                row.copy_from_slice(&gathered);
            }
            if let Some(scale) = scale {
                row.iter_mut().zip(scale).for_each(|(value, factor)| *value /= factor);
            }
        }
        Ok(rows)
    }

    /// Encodes and decodes rows whose columns count by `importance` where ggml writes them.
    fn there_and_back(&self, ty: GgmlType, importance: &[f32], rows: &mut [f32]) -> Result<()> {
        let columns = importance.len();
        if ty != GgmlType::TCQ4_K32 {
            let row = ty.row_bytes(columns as u64).unwrap_or(0) as usize;
            let mut bytes = vec![0; row * (rows.len() / columns)];
            llama::quantize_rows(ty.0, rows, columns, Some(importance), &mut bytes)?;
            return llama::dequantize_rows(ty.0, &bytes, columns, rows);
        }
        let mut tiles = vec![<Tile as bytemuck::Zeroable>::zeroed(); columns / CHUNK];
        for stripe in rows.chunks_exact_mut(TILE_ROWS * columns) {
            if self.codec.encode_rows(stripe, columns, &mut tiles).is_err() {
                stripe.fill(0.0); // what cannot be encoded is refused later; here it counts as lost
                continue;
            }
            self.codec.decode_rows(&tiles, columns, stripe);
        }
        Ok(())
    }

    /// Measures the outputs of a tensor, and the squared error of each rounding in `of`.
    fn measure<T>(
        &self,
        tensor: &TensorInfo,
        of: &[T],
        error: impl Fn(&Part, &T) -> Result<f64>,
    ) -> Result<Option<Sensitivity>> {
        let parts = self.parts(tensor)?;
        let columns = tensor.columns() as usize;
        let (mut total, mut outputs, mut errors) = (0.0, 0usize, vec![0.0; of.len()]);
        for part in &parts {
            let exact = product(&part.rows, &part.weights, columns);
            total += energy(&exact);
            outputs += exact.len();
            for (sum, rounding) in errors.iter_mut().zip(of) {
                *sum += error(part, rounding)?;
            }
        }
        if total <= 0.0 {
            return Ok(None);
        }
        for error in &mut errors {
            *error /= total;
        }
        let rows = tensor.rows() / tensor.matrices();
        let energy = total / outputs as f64 * rows as f64;
        Ok(Some(Sensitivity { tensor: tensor.name.clone(), energy, errors, influence: 0.0 }))
    }

    fn parts(&self, tensor: &TensorInfo) -> Result<Vec<Part>> {
        let Some(stats) = self.statistics.entries.get(&tensor.name) else { return Ok(Vec::new()) };
        let rows = stats.rows.as_ref().filter(|rows| rows.columns as u64 == tensor.columns());
        let Some(rows) = rows else { return Ok(Vec::new()) };
        let one = |expert: Option<u32>| {
            let weights = sampled_weights(self.weights, tensor, expert.unwrap_or(0))?;
            let mean_sq = stats.importance(expert.unwrap_or(0) as usize);
            Ok(Part { rows: sampled_rows(rows, expert), weights, mean_sq })
        };
        experts(tensor, rows).into_iter().map(one).collect()
    }

    /// Fills in the influences: an output that is added to the residual stream counts by its share of the stream there, any other one as if its
    /// relative error became that of the output of its branch (attention or feed-forward network), split evenly between those who read one input.
    ///
    /// # Errors
    /// If the token embedding cannot be read.
    pub fn weigh(&self, found: &mut [Sensitivity]) -> Result<()> {
        let mut stream = self.embedding_energy()?;
        let names: Vec<TensorName> = found.iter().map(|one| TensorName::parse(&one.tensor)).collect();
        let mut blocks: Vec<u32> = names.iter().filter_map(|name| name.block).collect();
        blocks.sort_unstable();
        blocks.dedup();
        for block in blocks {
            let of: Vec<usize> = (0..found.len()).filter(|&at| names[at].block == Some(block)).collect();
            for branch in [Branch::Attention, Branch::FeedForward, Branch::Other] {
                let of: Vec<usize> = of.iter().copied().filter(|&at| Branch::of(names[at].role) == branch).collect();
                let adds = |at: usize| meets_stream(names[at].role, names[at].kind) == Meets::Rows;
                let added: f64 = of.iter().filter(|&&at| adds(at)).map(|&at| found[at].energy).sum();
                stream += added;
                let readers = of.iter().filter(|&&at| !adds(at)).count().max(1) as f64;
                for &at in &of {
                    let share = if adds(at) { found[at].energy } else { added / readers };
                    found[at].influence = if stream > 0.0 { share / stream } else { 0.0 };
                }
            }
        }
        Ok(())
    }

    /// The mean squared length of a row of the token embedding.
    fn embedding_energy(&self) -> Result<f64> {
        let Some(tensor) = self.weights.source.tensor("token_embd.weight") else { return Ok(0.0) };
        let (count, mut row) = (tensor.rows().min(EMBEDDING_ROWS), vec![0.0; tensor.columns() as usize]);
        let mut sum = 0.0;
        for at in 0..count {
            (self.weights.read)(tensor, at * tensor.rows() / count, &mut row)?;
            sum += energy(&row);
        }
        Ok(sum / count.max(1) as f64)
    }
}

/// The part of a block whose output is added to the stream at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Attention,
    FeedForward,
    Other,
}

impl Branch {
    fn of(role: Role) -> Self {
        match role {
            Role::AttnQ | Role::AttnK | Role::AttnV | Role::AttnQkv | Role::AttnOutput => Branch::Attention,
            Role::Unknown => Branch::Other,
            _ => Branch::FeedForward,
        }
    }
}

fn energy(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

/// Divides units into at most `limit` runs of neighbours of one kind, to be measured together, all about as long; the indices of the units in each.
/// `kinds` names the kind of each unit, in the order of the model. No run is longer than needed, but each kind has at least one.
pub fn runs_of_kinds(kinds: &[&str], limit: usize) -> Vec<Vec<usize>> {
    let mut by_kind: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    kinds.iter().enumerate().for_each(|(at, kind)| by_kind.entry(kind).or_default().push(at));
    let runs = |length: usize| by_kind.values().map(|of| of.len().div_ceil(length)).sum::<usize>();
    let length = (1..=kinds.len().max(1)).find(|&length| runs(length) <= limit).unwrap_or(kinds.len().max(1));
    by_kind.values().flat_map(|of| of.chunks(length).map(<[usize]>::to_vec)).collect()
}

/// Divides what was measured of several units together in proportion to their errors; evenly where there are none.
pub fn spread_over(measured: f64, errors: &[f64]) -> Vec<f64> {
    let total: f64 = errors.iter().sum();
    let even = 1.0 / errors.len().max(1) as f64;
    errors.iter().map(|error| measured * if total > 0.0 { error / total } else { even }).collect()
}

/// The kind of a tensor or group: its name without the number of its block.
pub fn kind_of(name: &str) -> &str {
    let inside = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    inside.filter(|(number, _)| number.parse::<u32>().is_ok()).map_or(name, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_a_kind_are_measured_together_where_there_are_too_many() {
        let kinds = ["q", "d", "q", "d", "q", "d", "q", "x"];
        assert_eq!(runs_of_kinds(&kinds, 8).len(), 8);
        assert_eq!(runs_of_kinds(&kinds, 5), [vec![1, 3], vec![5], vec![0, 2], vec![4, 6], vec![7]]);
        assert_eq!(runs_of_kinds(&kinds, 1), [vec![1, 3, 5], vec![0, 2, 4, 6], vec![7]], "each kind on its own");
        assert!(runs_of_kinds(&[], 4).is_empty());
    }

    #[test]
    fn a_measured_sum_is_divided_by_the_errors() {
        assert_eq!(spread_over(6.0, &[1.0, 2.0, 0.0]), [2.0, 4.0, 0.0]);
        assert_eq!(spread_over(6.0, &[0.0, 0.0]), [3.0, 3.0]);
    }

    #[test]
    fn kinds_are_names_without_block_numbers() {
        assert_eq!(kind_of("blk.12.ffn_down.weight"), "ffn_down.weight");
        assert_eq!(kind_of("blk.x.ffn_down"), "blk.x.ffn_down");
        assert_eq!(kind_of("output.weight"), "output.weight");
    }
}
