//! What is known about the channels of a model's activations, and what a scale does to one row of a weight. Numbers for spreadsheets and notebooks.

use std::path::Path;

use serde::Serialize;

use crate::calib::{ChannelStats, Statistics};
use crate::error::{ExportError, Result};
use crate::gguf::{Source, TensorInfo};
use crate::quant::{GroupOutcome, Prepared, ReadRows};

/// One input channel of one matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelRow<'a> {
    /// The weight.
    pub tensor: &'a str,
    /// Which of its matrices: the expert, 0 where there are none.
    pub matrix: usize,
    /// The input channel.
    pub channel: usize,
    /// Rows that the matrix saw.
    pub rows: u64,
    /// Mean of x².
    pub mean_sq: Option<f64>,
    /// Mean of x; empty where it was not measured, as the next four.
    pub mean: Option<f64>,
    /// Standard deviation of x.
    pub std: Option<f64>,
    /// Mean of |x|.
    pub mean_abs: Option<f64>,
    /// Largest |x|.
    pub abs_max: Option<f32>,
    /// Smallest x.
    pub min: Option<f32>,
    /// Largest x.
    pub max: Option<f32>,
}

/// All channels of one weight, matrix after matrix.
pub fn channels<'a>(tensor: &'a str, entry: &'a ChannelStats) -> impl Iterator<Item = ChannelRow<'a>> {
    (0..entry.matrices * entry.columns).map(move |at| channel(tensor, entry, at))
}

fn channel<'a>(tensor: &'a str, entry: &ChannelStats, at: usize) -> ChannelRow<'a> {
    let (matrix, channel) = (at / entry.columns, at % entry.columns);
    let rows = entry.counts[matrix];
    let mean_of = |sums: &[f64]| (rows > 0).then(|| sums[at] / rows as f64);
    let (mean_sq, mean) = (mean_of(&entry.sum_sq), mean_of(&entry.sum).filter(|_| entry.complete));
    let (seen, ranged) = (rows > 0 && entry.complete, rows > 0 && entry.ranged);
    ChannelRow {
        tensor,
        matrix,
        channel,
        rows,
        mean_sq,
        mean,
        std: mean.zip(mean_sq).map(|(mean, mean_sq)| (mean_sq - mean * mean).max(0.0).sqrt()),
        mean_abs: mean_of(&entry.sum_abs).filter(|_| entry.complete),
        abs_max: seen.then(|| entry.abs_max[at]),
        min: ranged.then(|| entry.min[at]),
        max: ranged.then(|| entry.max[at]),
    }
}

/// What a scale does to one output row of a weight, channel by channel.
#[derive(Debug, Clone, PartialEq)]
pub struct RowData {
    /// The output row, counted over all matrices.
    pub row: u64,
    /// E\[x] of each input channel, over the rows that this row's matrix saw.
    pub mean: Vec<f64>,
    /// E\[x] / s.
    pub mean_scaled: Vec<f64>,
    /// The weights.
    pub weight: Vec<f32>,
    /// w·s.
    pub weight_scaled: Vec<f32>,
    /// s: what the weights' columns are multiplied by, and the activation divided by.
    pub scale: Vec<f32>,
}

/// Where row data comes from.
#[derive(Clone, Copy)]
pub struct RowSource<'a> {
    /// The model.
    pub model: &'a Source,
    /// How rows are read.
    pub read: &'a ReadRows<'a>,
    /// What is known of its activations.
    pub statistics: &'a Statistics,
    /// The file that they are from.
    pub statistics_path: &'a Path,
    /// The scales.
    pub prepared: &'a Prepared,
}

impl RowSource<'_> {
    /// The data of one row of `tensor`. Channels without a scale have 1.
    ///
    /// # Errors
    /// [`ExportError::NoRow`], [`ExportError::NotMeasured`]; what cannot be read.
    pub fn row(&self, tensor: &TensorInfo, row: u64) -> Result<RowData> {
        let (columns, rows) = (tensor.columns() as usize, tensor.rows());
        if row >= rows {
            let (path, tensor) = (self.model.path().to_path_buf(), tensor.name.clone());
            return Err(ExportError::NoRow { path, tensor, row, rows }.into());
        }
        let mean = self.means(tensor, (row / (rows / tensor.matrices().max(1)).max(1)) as usize)?;
        let mut weight = vec![0.0; columns];
        (self.read)(tensor, row, &mut weight)?;
        let scale = self.prepared.transforms.get(&tensor.name).and_then(|transform| transform.column_scale.clone());
        let scale = scale.unwrap_or_else(|| vec![1.0; columns]);
        Ok(RowData {
            row,
            mean_scaled: mean.iter().zip(&scale).map(|(mean, &s)| mean / f64::from(s)).collect(),
            weight_scaled: weight.iter().zip(&scale).map(|(w, s)| w * s).collect(),
            mean,
            weight,
            scale,
        })
    }

    fn means(&self, tensor: &TensorInfo, matrix: usize) -> Result<Vec<f64>> {
        let missing = |what| {
            let (path, tensor) = (self.statistics_path.to_path_buf(), tensor.name.clone());
            ExportError::NotMeasured { path, tensor, what }
        };
        let entry = self.statistics.entries.get(&tensor.name).ok_or_else(|| missing("statistics"))?;
        if !entry.complete {
            return Err(missing("mean inputs").into());
        }
        let count = entry.counts[matrix];
        if count == 0 {
            return Err(missing("tokens for this expert").into());
        }
        Ok(entry.sum[matrix * entry.columns..][..entry.columns].iter().map(|sum| sum / count as f64).collect())
    }
}

/// How the data of a row came to be.
#[derive(Debug, Serialize)]
pub struct RowMetadata<'a> {
    /// The model file.
    pub model: &'a Path,
    /// The statistics file.
    pub statistics: &'a Path,
    /// The calibration texts.
    pub calibration_texts: &'a [String],
    /// The tensor.
    pub tensor: &'a str,
    /// Its type in the model.
    pub tensor_type: String,
    /// The output row; none if all are exported.
    pub row: Option<u64>,
    /// Output rows of the tensor.
    pub rows: u64,
    /// Input channels.
    pub columns: u64,
    /// What each column of the data means.
    pub definitions: [(&'static str, &'static str); 5],
    /// What was chosen for the input of this tensor: exponent, factors, errors measured, or why there is no scale.
    pub group: Option<&'a GroupOutcome>,
}

/// What the columns of row data mean.
pub const DEFINITIONS: [(&str, &str); 5] = [
    ("E[X]", "mean of the input channel over the calibration text"),
    ("E[Xs]", "E[X] / scale"),
    ("W", "weight of the output row"),
    ("W_scaled", "W * scale"),
    ("scale", "factor of the weight's column; the activation is divided by it where it is made"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_by_hand() {
        let mut entry = ChannelStats::new(2, 2);
        entry.counts = vec![2, 0];
        // Channel 0 saw 1 and -3, channel 1 saw 0 and 4.
        entry.sum[..2].copy_from_slice(&[-2.0, 4.0]);
        entry.sum_abs[..2].copy_from_slice(&[4.0, 4.0]);
        entry.sum_sq[..2].copy_from_slice(&[10.0, 16.0]);
        entry.abs_max[..2].copy_from_slice(&[3.0, 4.0]);
        entry.min[..2].copy_from_slice(&[-3.0, 0.0]);
        entry.max[..2].copy_from_slice(&[1.0, 4.0]);
        let rows: Vec<ChannelRow<'_>> = channels("w", &entry).collect();
        let first = &rows[0];
        assert_eq!(
            (first.mean, first.mean_abs, first.mean_sq, first.std),
            (Some(-1.0), Some(2.0), Some(5.0), Some(2.0))
        );
        assert_eq!((first.abs_max, first.min, first.max, first.rows), (Some(3.0), Some(-3.0), Some(1.0), 2));
        let unseen = &rows[3];
        assert_eq!((unseen.matrix, unseen.channel, unseen.mean_sq, unseen.min), (1, 1, None, None));
        entry.complete = false;
        let (mean, mean_sq) = channels("w", &entry).map(|row| (row.mean, row.mean_sq)).next().unwrap();
        assert_eq!((mean, mean_sq), (None, Some(5.0)));
    }
}
