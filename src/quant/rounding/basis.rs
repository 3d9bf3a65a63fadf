//! Brings a second moment into the basis of the rotated weights: the same scales, order and rotation as the weights', on both sides.

use rayon::prelude::*;

use crate::math::hadamard::FWHT_NORM;
use crate::quant::Transform;
use crate::tcq::{CHUNK, Codec};

/// Columns that are rotated together: 256 rows of them fit into the first cache.
const STRIP: usize = 16;

/// `RᵀHR` for the second moment H of the activations as the model has them, and R what `transform` and the rotation do to activations:
/// weights divided by a channel's scale mean activations multiplied by it.
///
/// # Panics
/// If the transform is of another number of columns, or that is not a multiple of 256.
pub fn rotated(hessian: &[f32], columns: usize, transform: &Transform, codec: Codec) -> Vec<f32> {
    let (order, factors) = gathered(columns, transform);
    let mut new = vec![0.0; columns * columns];
    new.par_chunks_exact_mut(columns).enumerate().for_each(|(i, row)| {
        let from = &hessian[order[i] as usize * columns..][..columns];
        row.iter_mut().zip(&order).for_each(|(value, &j)| *value = from[j as usize]);
    });
    rotate(&mut new, &factors, codec);
    new
}

/// Multiplies rows and columns of a second moment, in the order of the weights' columns, by their factors and rotates both sides, in place.
///
/// # Panics
/// If it is not square of as many columns as there are factors, or that is not a multiple of 256.
pub fn rotate(hessian: &mut [f32], factors: &[f32], codec: Codec) {
    let columns = factors.len();
    assert!(hessian.len() == columns * columns && columns.is_multiple_of(CHUNK));
    hessian.par_chunks_mut(CHUNK * columns).enumerate().for_each(|(chunk, rows)| {
        for (row, own) in rows.chunks_exact_mut(columns).zip(&factors[chunk * CHUNK..]) {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= own * factor);
            codec.fwht(row);
        }
        for first in (0..columns).step_by(STRIP) {
            rotate_strip(rows, columns, first);
        }
    });
}

/// Rotates [`STRIP`] columns of 256 rows, from column `first` on: what [`crate::math::hadamard::fwht256`] does, to all of them at once.
fn rotate_strip(rows: &mut [f32], columns: usize, first: usize) {
    let mut strip = [[0.0f32; STRIP]; CHUNK];
    for (own, row) in strip.iter_mut().zip(rows.chunks_exact(columns)) {
        own.copy_from_slice(&row[first..first + STRIP]);
    }
    let mut h = 1;
    while h < CHUNK {
        for pair in strip.chunks_exact_mut(2 * h) {
            let (upper, lower) = pair.split_at_mut(h);
            for (a, b) in upper.iter_mut().flatten().zip(lower.iter_mut().flatten()) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        h *= 2;
    }
    for (own, row) in strip.iter().zip(rows.chunks_exact_mut(columns)) {
        row[first..first + STRIP].iter_mut().zip(own).for_each(|(value, sum)| *value = sum * FWHT_NORM);
    }
}

/// The mean input in the basis of the rotated weights, for the mean of the activations as the model has them.
///
/// # Panics
/// As [`rotated`].
pub fn rotated_mean(mean: &[f32], transform: &Transform, codec: Codec) -> Vec<f32> {
    let (order, factors) = gathered(mean.len(), transform);
    let mut new: Vec<f32> = order.iter().zip(factors).map(|(&j, factor)| mean[j as usize] * factor).collect();
    codec.fwht(&mut new);
    new
}

/// The mean square of each column's activation, for the mean squares that the model has; without rotation, which only TCQ4 has.
///
/// # Panics
/// If the transform is of another number of columns.
pub fn importance(mean_sq: &[f32], transform: &Transform) -> Vec<f32> {
    let (order, factors) = gathered(mean_sq.len(), transform);
    order.iter().zip(factors).map(|(&j, factor)| mean_sq[j as usize] * factor * factor).collect()
}

/// Where each of the weights' columns comes from, and by what its activation is multiplied.
///
/// # Panics
/// If the transform is of another number of columns.
pub fn gathered(columns: usize, transform: &Transform) -> (Vec<u32>, Vec<f32>) {
    let order: Vec<u32> = match &transform.columns {
        Some(order) => order.indices().to_vec(),
        None => (0..columns as u32).collect(),
    };
    let factors = match &transform.column_scale {
        Some(scale) => order.iter().map(|&j| 1.0 / scale[j as usize]).collect(),
        None => vec![1.0; columns],
    };
    (order, factors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::Permutation;
    use crate::math::hadamard::fwht256;
    use crate::tcq::Encoder;

    #[test]
    fn it_is_the_second_moment_of_what_enters_the_multiplication() {
        const COLUMNS: usize = 512;
        let indices: Vec<i64> = (0..COLUMNS as i64).map(|i| (i * 77 + 5) % COLUMNS as i64).collect();
        let scale: Vec<f32> = (0..COLUMNS).map(|j| 0.5 + (j % 9) as f32 / 4.0).collect();
        let transform = Transform {
            column_scale: Some(scale.clone()),
            columns: Some(Permutation::new(&indices).unwrap()),
            ..Transform::default()
        };
        let rows: Vec<Vec<f32>> =
            (0..3).map(|t| (0..COLUMNS).map(|j| ((j * 31 + t * 577) % 101) as f32 / 50.0 - 1.0).collect()).collect();
        let moment = |rows: &[Vec<f32>]| -> Vec<f32> {
            let at = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f32>();
            (0..COLUMNS * COLUMNS).map(|k| at(k / COLUMNS, k % COLUMNS)).collect()
        };
        let entering: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| {
                let mut new: Vec<f32> = indices.iter().map(|&j| row[j as usize] / scale[j as usize]).collect();
                new.as_chunks_mut::<256>().0.iter_mut().for_each(fwht256);
                new
            })
            .collect();
        let found = rotated(&moment(&rows), COLUMNS, &transform, Codec::new(Encoder::Default));
        let expected = moment(&entering);
        let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * largest));
        let mean =
            |rows: &[Vec<f32>]| -> Vec<f32> { (0..COLUMNS).map(|j| rows.iter().map(|row| row[j]).sum()).collect() };
        let squares = |rows: &[Vec<f32>]| -> Vec<f32> {
            (0..COLUMNS).map(|j| rows.iter().map(|row| row[j] * row[j]).sum()).collect()
        };
        let mut unrotated = entering.clone();
        unrotated.iter_mut().flat_map(|row| row.as_chunks_mut::<256>().0).for_each(fwht256);
        let found = importance(&squares(&rows), &transform);
        assert!(found.iter().zip(squares(&unrotated)).all(|(a, b)| (a - b).abs() < 1e-4 * b.max(1.0)));
        let found = rotated_mean(&mean(&rows), &transform, Codec::new(Encoder::Default));
        assert!(found.iter().zip(mean(&entering)).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
