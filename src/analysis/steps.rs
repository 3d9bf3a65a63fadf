//! An activation after each step of the preparation: how large its blocks' maxima are, how many values round to zero, how large the error is.

use super::describe::{histogram, mean, spread};
use super::record::{BlockMaxima, Step, StepRow};
use crate::math::Permutation;
use crate::quant::Activations;
use crate::tcq::{CHUNK, Codec, GROUP};

/// Bins of the histograms of block maxima.
const BINS: usize = 60;

/// One step measured: its row, and every block's maximum in units of the step's rms.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The numbers.
    pub row: StepRow,
    maxima_256: Vec<f32>,
    maxima_32: Vec<f32>,
}

/// What is done to an activation before it is rounded.
#[derive(Debug, Clone, Copy)]
pub struct Preparation<'a> {
    /// The factors of the channels.
    pub scale: Option<&'a [f32]>,
    /// The old channel of each new one.
    pub order: Option<&'a Permutation>,
}

impl Preparation<'_> {
    /// Scales and orders rows of `columns` values in place.
    pub fn apply(&self, rows: &mut [f32], columns: usize) {
        if let Some(scale) = self.scale {
            rows.chunks_exact_mut(columns)
                .for_each(|row| row.iter_mut().zip(scale).for_each(|(value, factor)| *value *= factor));
        }
        if let Some(order) = self.order {
            let mut old = vec![0.0; columns];
            for row in rows.chunks_exact_mut(columns) {
                old.copy_from_slice(row);
                order.gather(&old, row);
            }
        }
    }
}

/// Measures every step on sample rows of `columns` values, a multiple of 256.
pub fn steps(rows: &[f32], columns: usize, preparation: Preparation<'_>, codec: Codec) -> Vec<Measured> {
    let one = |step| {
        let mut values = rows.to_vec();
        let prepared = match step {
            Step::Plain | Step::RotatedPlain => Preparation { scale: None, order: None },
            Step::Scaled => Preparation { order: None, ..preparation },
            Step::Ordered | Step::Rotated => preparation,
        };
        prepared.apply(&mut values, columns);
        if matches!(step, Step::Rotated | Step::RotatedPlain) {
            codec.fwht(&mut values);
        }
        measure(step, &values)
    };
    Step::ALL.into_iter().map(one).collect()
}

/// Measures the values of one step; blocks are consecutive.
pub fn measure(step: Step, values: &[f32]) -> Measured {
    let energy: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let rms = (energy / values.len().max(1) as f64).sqrt();
    let maxima = |block: usize| -> Vec<f32> {
        let max = |block: &[f32]| block.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let unit = |max: f32| if rms > 0.0 { (f64::from(max) / rms) as f32 } else { 0.0 };
        values.chunks(block).map(|block| unit(max(block))).collect()
    };
    let (maxima_256, maxima_32) = (maxima(CHUNK), maxima(GROUP));
    let (error_int4, victims_256) = rounding(values, energy, Activations::Int4);
    let (error_int4_group32, victims_32) = rounding(values, energy, Activations::Int4Group32);
    let row = StepRow {
        step,
        block_max_256: spread(maxima_256.clone()),
        block_max_32: spread(maxima_32.clone()),
        crest_256: crest(values, CHUNK),
        crest_32: crest(values, GROUP),
        victims_256,
        victims_32,
        error_int4,
        error_int4_group32,
        error_int8: rounding(values, energy, Activations::Int8).0,
    };
    Measured { row, maxima_256, maxima_32 }
}

/// The relative error of a path, and the share of values other than 0 that become 0.
fn rounding(values: &[f32], energy: f64, path: Activations) -> (f32, f32) {
    let mut rounded = values.to_vec();
    path.round(&mut rounded);
    let pairs = || values.iter().zip(&rounded);
    let error: f64 = pairs().map(|(&x, &q)| (f64::from(x) - f64::from(q)).powi(2)).sum();
    let victims = pairs().filter(|&(&x, &q)| x != 0.0 && q == 0.0).count();
    let nonzero = values.iter().filter(|&&x| x != 0.0).count();
    let share = |part: f64, whole: f64| if whole > 0.0 { (part / whole) as f32 } else { 0.0 };
    (share(error, energy), share(victims as f64, nonzero as f64))
}

/// The mean over blocks of largest magnitude over rms; blocks of zeros are left out.
fn crest(values: &[f32], block: usize) -> f32 {
    let one = |block: &[f32]| {
        let energy: f64 = block.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let max = f64::from(block.iter().fold(0.0f32, |max, v| max.max(v.abs())));
        (energy > 0.0).then(|| max / (energy / block.len() as f64).sqrt())
    };
    mean(values.chunks(block).filter_map(one)) as f32
}

/// The distributions of block maxima of all steps, over one range for each block length.
pub fn block_maxima(steps: &[Measured]) -> Vec<BlockMaxima> {
    let range = |of: fn(&Measured) -> &[f32]| steps.iter().flat_map(of).copied().fold(0.0, f32::max);
    let (top_256, top_32) = (range(|s| &s.maxima_256), range(|s| &s.maxima_32));
    let one = |measured: &Measured| BlockMaxima {
        step: measured.row.step,
        of_256: histogram(measured.maxima_256.iter().copied(), 0.0, top_256, BINS),
        of_32: histogram(measured.maxima_32.iter().copied(), 0.0, top_32, BINS),
    };
    steps.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcq::Encoder;

    fn close(a: f32, b: f32) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn a_spike_makes_victims_of_its_block_and_the_rotation_saves_them() {
        let mut values = vec![1.0f32; 512];
        values[40] = 100.0;
        let plain = measure(Step::Plain, &values).row;
        // 255 of the spike's 256 round to zero (step 11.25), none of the other block; 31 of the spike's 32 (step 12.5).
        close(plain.victims_256, 255.0 / 512.0);
        close(plain.victims_32, 31.0 / 512.0);
        let rms = ((10_000.0 + 511.0) / 512.0f32).sqrt();
        close(plain.block_max_256.max, 100.0 / rms);
        close(plain.block_max_256.mean, 50.5 / rms);
        let crest = 100.0 / (10_255.0f32 / 256.0).sqrt();
        close(plain.crest_256, f32::midpoint(crest, 1.0));
        // The spike itself is clipped to 90 (0.9), its victims lose everything, the ones of the other block a tenth.
        close(plain.error_int4, (100.0 + 255.0 + 256.0 * 0.01) / 10_511.0);
        let spread = steps(&values, 512, Preparation { scale: None, order: None }, Codec::new(Encoder::Default));
        assert_eq!(spread.iter().map(|s| s.row.step).collect::<Vec<_>>(), Step::ALL);
        assert!(spread[4].row.victims_256 < 0.01 && spread[4].row.crest_256 < 0.5 * plain.crest_256 + 6.0);
        assert_eq!(spread[0].row, spread[2].row.clone_as(Step::Plain));
    }

    impl StepRow {
        fn clone_as(&self, step: Step) -> Self {
            StepRow { step, ..self.clone() }
        }
    }

    #[test]
    fn scale_then_order() {
        let order = Permutation::new(&[2, 0, 1]).unwrap();
        let mut rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let scale = [1.0, 10.0, 100.0];
        Preparation { scale: Some(&scale), order: Some(&order) }.apply(&mut rows, 3);
        assert_eq!(rows, [300.0, 1.0, 20.0, 600.0, 4.0, 50.0]);
    }

    #[test]
    fn zeros_have_no_victims_and_no_error() {
        let measured = measure(Step::Plain, &[0.0; 256]);
        assert_eq!((measured.row.victims_256, measured.row.error_int4, measured.row.crest_256), (0.0, 0.0, 0.0));
        let maxima = block_maxima(&[measured]);
        assert_eq!(maxima[0].of_32.counts.iter().sum::<u64>(), 8);
    }

    #[test]
    fn victims_are_what_the_definition_says() {
        let values: Vec<f32> = (0..1024).map(|i| ((i * 7919 % 613) as f32 - 306.0) / 40.0).collect();
        let found = measure(Step::Plain, &values).row;
        let naive = |block: usize, clip: f32| {
            let victims: usize = values
                .chunks(block)
                .map(|block| {
                    let max = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    block.iter().filter(|v| v.abs() > 0.0 && v.abs() <= clip * max / 16.0).count()
                })
                .sum();
            victims as f32 / values.iter().filter(|v| **v != 0.0).count() as f32
        };
        close(found.victims_256, naive(256, 0.9));
        close(found.victims_32, naive(32, 1.0));
    }
}
