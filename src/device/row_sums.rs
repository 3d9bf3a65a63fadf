//! Sums over rows of activations on a GPU, as calibration takes them: the bits of the CPU.
//!
//! Rows come from the host and sums go back there: nothing stays on the GPU from call to call.

use std::fmt::Debug;
use std::sync::Arc;

use super::gpu::Gpu;
use super::launch_calibration::{Rows, gram_len, statistics_len};
use crate::error::DeviceError;

/// Rows that are summed in f32 before they join larger sums.
pub const SUMMED_ROWS: usize = 32;
/// Numbers for each channel and [`SUMMED_ROWS`] rows.
pub const SUMS: usize = 5;

/// Something that sums rows up in place of the CPU, to the same bits.
pub trait SumRows: Debug + Send + Sync {
    /// For every [`SUMMED_ROWS`] rows of so many columns (the last ones may be fewer), smallest and largest value, and sums of x, |x| and x²:
    /// `[blocks][5][columns]`, summed row after row in f32. Nothing where the way to the device and back takes longer than the work.
    ///
    /// # Errors
    /// What the driver says.
    fn channel_sums(&self, rows: &[f32], columns: usize) -> Result<Option<Vec<f32>>, DeviceError>;

    /// Σ x xᵀ over rows of so many columns, a multiple of 32, row after row in f32, every product and every sum rounded. Of bands of 32 rows of the result,
    /// the columns from the first of the band on: 32 times all, then 32 times all but 32, and so on. Nothing where the CPU should do it.
    ///
    /// # Errors
    /// What the driver says.
    fn products(&self, rows: &[f32], columns: usize) -> Result<Option<Vec<f32>>, DeviceError>;
}

/// Values below which sums of channels are left to the CPU, which takes some ten microseconds for so many.
const WORTH_SUMS: usize = 1 << 14;
/// Multiplications below which products are left to it, for the same reason.
const WORTH_PRODUCTS: usize = 1 << 22;

/// Sums rows up on a GPU.
#[derive(Debug)]
pub struct RowSums(Arc<Gpu>);

impl RowSums {
    /// Loads the kernels, so that what can fail fails before the work begins.
    ///
    /// # Errors
    /// What the compiler or the driver says.
    pub fn new(gpu: Arc<Gpu>) -> Result<Self, DeviceError> {
        gpu.prepare("tcq4_statistics")?;
        gpu.prepare("tcq4_gram")?;
        Ok(Self(gpu))
    }

    /// Whether rows and results take less than half of the memory, so that others find room beside them.
    fn has_room(&self, values: usize) -> bool {
        (values * size_of::<f32>()) as u64 <= self.0.facts().memory_bytes / 2
    }
}

impl SumRows for RowSums {
    fn channel_sums(&self, rows: &[f32], columns: usize) -> Result<Option<Vec<f32>>, DeviceError> {
        let shape = Rows { tokens: rows.len() / columns.max(1), k: columns };
        let len = statistics_len(shape);
        if rows.len() < WORTH_SUMS || !self.has_room(rows.len() + len) {
            return Ok(None);
        }
        let queue = self.0.queue()?;
        let (x, mut sums) = (queue.upload(rows)?, queue.room(len)?);
        queue.statistics(&x, shape, &mut sums)?;
        queue.download(&sums).map(Some)
    }

    fn products(&self, rows: &[f32], columns: usize) -> Result<Option<Vec<f32>>, DeviceError> {
        let shape = Rows { tokens: rows.len() / columns.max(1), k: columns };
        let len = gram_len(columns);
        if shape.tokens * len < WORTH_PRODUCTS || !self.has_room(rows.len() + len) {
            return Ok(None);
        }
        let queue = self.0.queue()?;
        let (x, mut gram) = (queue.upload(rows)?, queue.room(len)?);
        queue.gram(&x, shape, &mut gram)?;
        queue.download(&gram).map(Some)
    }
}
