//! What a runtime's rounding of activations adds to the inputs of a layer, in the basis of its rotated weights.
//!
//! Measured on sample rows, and taken for the same in all columns of a chunk: the rotation spreads it evenly. Its correlation between columns is
//! left out.

use super::basis::rotated_mean;
use crate::calib::SampleRows;
use crate::quant::{Activations, Transform};
use crate::tcq::{CHUNK, Codec};

/// The noise n of an input x, for each column.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationNoise {
    /// E[n²].
    pub power: Vec<f32>,
    /// E[x n]; below zero where a path clips.
    pub with_input: Vec<f32>,
}

impl ActivationNoise {
    /// The noise of a path on `rows`, which are in the basis in which the model has them. `None` where there are no rows.
    ///
    /// # Panics
    /// If the rows have another number of columns than the transform, or that is not a multiple of 256.
    pub fn measure(rows: &SampleRows, transform: &Transform, path: Activations, codec: Codec) -> Option<Self> {
        let mut sums = vec![(0.0f64, 0.0f64); rows.columns / CHUNK];
        for (_, row) in rows.iter() {
            let given = rotated_mean(row, transform, codec);
            let mut rounded = given.clone();
            path.round(&mut rounded);
            let chunks = given.chunks_exact(CHUNK).zip(rounded.chunks_exact(CHUNK));
            for ((power, with_input), (given, rounded)) in sums.iter_mut().zip(chunks) {
                for (&x, &rounded) in given.iter().zip(rounded) {
                    let noise = f64::from(rounded - x);
                    *power += noise * noise;
                    *with_input += noise * f64::from(x);
                }
            }
        }
        let count = (rows.len() * CHUNK) as f64;
        let spread = |pick: fn(&(f64, f64)) -> f64| {
            sums.iter().flat_map(|sum| std::iter::repeat_n((pick(sum) / count) as f32, CHUNK)).collect()
        };
        (!rows.is_empty()).then(|| Self { power: spread(|sum| sum.0), with_input: spread(|sum| sum.1) })
    }

    /// Makes E[(x + n)(x + n)ᵀ] of the second moment E[x xᵀ], a square matrix.
    ///
    /// # Panics
    /// If the number of columns differs.
    pub fn add_to(&self, hessian: &mut [f32]) {
        let columns = self.power.len();
        assert_eq!(hessian.len(), columns * columns);
        for (j, (power, with_input)) in self.power.iter().zip(&self.with_input).enumerate() {
            hessian[j * (columns + 1)] += power + 2.0 * with_input;
        }
    }

    /// E[(x + n) n] of each column: with weights w that see x + n the output w·x is met best by w - (w ∘ lost) H⁻¹ for the H of [`Self::add_to`].
    pub fn lost(&self) -> Vec<f32> {
        self.power.iter().zip(&self.with_input).map(|(power, with_input)| power + with_input).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcq::Encoder;

    #[test]
    fn it_is_what_the_path_adds() {
        let codec = Codec::new(Encoder::Default);
        let data: Vec<f32> = (0..3 * 512).map(|i| ((i * 7919 % 1013) as f32 - 506.0) / 300.0).collect();
        let rows = SampleRows { columns: 512, data: data.clone(), matrix: vec![0; 3] };
        let noise = ActivationNoise::measure(&rows, &Transform::default(), Activations::Int4, codec).unwrap();
        assert_eq!((noise.power.len(), noise.with_input.len()), (512, 512));
        let (mut power, mut with_input) = (0.0, 0.0);
        for row in data.chunks(512) {
            let mut turned = row.to_vec();
            codec.fwht(&mut turned);
            let mut rounded = turned.clone();
            Activations::Int4.round(&mut rounded);
            for (x, r) in turned[256..].iter().zip(&rounded[256..]) {
                power += f64::from((r - x) * (r - x)) / 768.0;
                with_input += f64::from((r - x) * x) / 768.0;
            }
        }
        assert!((f64::from(noise.power[300]) - power).abs() < 1e-6 * power);
        assert!((f64::from(noise.with_input[511]) - with_input).abs() < 1e-5 * power);
        assert!(noise.power[0] > 0.0);
        let none = ActivationNoise::measure(&rows, &Transform::default(), Activations::None, codec).unwrap();
        assert!(none.power.iter().all(|&p| p == 0.0));
        assert_eq!(
            ActivationNoise::measure(&SampleRows::default(), &Transform::default(), Activations::Int4, codec),
            None
        );
    }
}
