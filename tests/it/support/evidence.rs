//! Statistics made in code, as if a text had been seen.

use std::sync::Arc;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tcq4::calib::{ChannelStats, SampleRows, Statistics};
use tcq4::gguf::Source;
use tcq4::model::{Arch, Shape, groups};

/// Sums over sample rows that the statistics hold, for every group of the blocks; `value` gives channel `j` of a row of a group.
pub fn statistics(
    source: &Source,
    rows: usize,
    mut value: impl FnMut(&str, usize, &mut ChaCha8Rng) -> f32,
) -> Statistics {
    let shapes = source.tensors().iter().map(|tensor| Shape { name: &tensor.name, dims: &tensor.dims });
    let arch = Arch::from_metadata(source.metadata());
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut statistics = Statistics { chunk_count: 1, chunk_size: 512, ..Statistics::default() };
    for group in groups(shapes, &arch).iter().filter(|group| group.key != "output") {
        let columns = group.columns as usize;
        let matrices = group.readers.iter().map(|name| source.tensor(name).unwrap().matrices()).max().unwrap_or(1);
        let mut sample = SampleRows { columns, ..SampleRows::default() };
        for row in 0..rows {
            sample.matrix.push(row as u32 % matrices as u32);
            sample.data.extend((0..columns).map(|j| value(&group.key, j, &mut random)));
        }
        for name in &group.readers {
            let own = source.tensor(name).unwrap().matrices() as usize;
            statistics.entries.insert(name.clone(), sums(&sample, own));
        }
        statistics.groups.push(group.readers.clone());
    }
    statistics
}

/// Noise whose strength differs from channel to channel.
pub fn uneven(_: &str, j: usize, random: &mut ChaCha8Rng) -> f32 {
    random.random_range(-1.0f32..1.0) * (1.0 + (j * 7919 % 13) as f32)
}

/// The sums over rows of one tensor of so many matrices.
pub fn sums(rows: &SampleRows, matrices: usize) -> ChannelStats {
    let mut stats = ChannelStats::new(matrices, rows.columns);
    let mut own = rows.clone();
    for (at, (matrix, row)) in rows.iter().enumerate() {
        let matrix = if matrices == 1 { 0 } else { matrix };
        own.matrix[at] = matrix;
        stats.counts[matrix as usize] += 1;
        for (at, &x) in (matrix as usize * rows.columns..).zip(row) {
            stats.abs_max[at] = stats.abs_max[at].max(x.abs());
            (stats.min[at], stats.max[at]) = (stats.min[at].min(x), stats.max[at].max(x));
            (stats.min[at], stats.max[at]) = (stats.min[at].min(x), stats.max[at].max(x));
            stats.sum[at] += f64::from(x);
            stats.sum_abs[at] += f64::from(x.abs());
            stats.sum_sq[at] += f64::from(x) * f64::from(x);
        }
    }
    stats.rows = Some(Arc::new(own));
    stats
}
