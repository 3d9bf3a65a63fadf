//! How the weights of a TCQ4 tensor were rounded, read off its tiles.

use super::describe::{histogram, magnitude, mean};
use super::record::{Histogram, Rounding};
use crate::tcq::{CHUNK, GROUP, TILE_ROWS, Tile};

/// A code that differs less than this from the weight, in steps, is exact.
const EXACT: f32 = 1e-6;
/// Bins of the signed histogram.
const BINS: usize = 80;

/// Rounding errors of one tensor, added up stripe by stripe.
#[derive(Debug, Clone, Default)]
pub struct Residuals {
    steps: Vec<f32>,
    weights: Vec<f32>,
    no_step: u64,
}

impl Residuals {
    /// Adds eight rows of `columns` rotated weights and the tiles that stand for them.
    ///
    /// # Panics
    /// If rows and tiles are not of the lengths that belong to `columns`.
    pub fn add(&mut self, rotated: &[f32], columns: usize, tiles: &[Tile]) {
        assert_eq!((rotated.len(), tiles.len()), (columns * TILE_ROWS, columns / CHUNK));
        for (row, values) in rotated.chunks_exact(columns).enumerate() {
            for (at, group) in values.chunks_exact(GROUP).enumerate() {
                let (tile, index) = (&tiles[at * GROUP / CHUNK], at % (CHUNK / GROUP));
                self.add_group(group, tile, row, index);
            }
        }
    }

    fn add_group(&mut self, values: &[f32], tile: &Tile, row: usize, group: usize) {
        let (step, offset) = (tile.step(row, group), tile.offset(row, group));
        if step == 0.0 {
            self.no_step += values.len() as u64;
            return;
        }
        for (k, value) in values.iter().enumerate() {
            let code = f32::from(tile.code(row, group * GROUP + k));
            let residual = code - (value - offset) / step;
            self.steps.push(residual);
            self.weights.push(residual * step);
        }
    }

    /// The signed errors in steps, from -1 to 1.
    pub fn histogram(&self) -> Histogram {
        histogram(self.steps.iter().copied(), -1.0, 1.0, BINS)
    }

    /// The numbers.
    pub fn rounding(&self) -> Rounding {
        let count = |of: &dyn Fn(f32) -> bool| self.steps.iter().filter(|&&e| of(e)).count() as u64;
        Rounding {
            weights: self.steps.len() as u64 + self.no_step,
            rounded_up: count(&|e| e > EXACT),
            rounded_down: count(&|e| e < -EXACT),
            exact: count(&|e| e.abs() <= EXACT),
            no_step: self.no_step,
            clipped: count(&|e| e.abs() > 0.5 + EXACT),
            in_steps: magnitude(self.steps.clone()),
            in_weights: magnitude(self.weights.clone()),
            signed_mean: mean(self.steps.iter().map(|&e| f64::from(e))) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use half::f16;

    use super::*;

    /// A tile of 8 rows with S = 127, so that the step of a group is its code.
    fn tile(step: i8) -> Tile {
        let mut tile = Tile::zeroed();
        tile.scale = [f16::from_f32(127.0); TILE_ROWS];
        tile.scale_code = [[step; 8]; TILE_ROWS];
        tile
    }

    #[test]
    fn by_hand() {
        let mut tile = tile(2);
        tile.scale_code[1] = [0; 8];
        tile.zero = [f16::from_f32(127.0); TILE_ROWS];
        tile.zero_code[0] = [1; 8];
        let mut rotated = vec![0.0f32; 8 * CHUNK];
        rotated[..CHUNK].fill(1.0); // the offset: code 0 is exact
        rotated[0] = 1.5; // ¼ step above code 0: rounded down
        rotated[1] = 0.4; // 0.3 steps below: rounded up
        rotated[2] = 3.5; // 1¼ steps above: clipped
        rotated[CHUNK + 5] = 9.0; // the row without steps
        let mut residuals = Residuals::default();
        residuals.add(&rotated, CHUNK, &[tile]);
        let found = residuals.rounding();
        assert_eq!(found.weights, 8 * 256);
        assert_eq!((found.rounded_up, found.rounded_down, found.no_step, found.clipped), (1, 2, 256, 1));
        assert_eq!(found.exact, 7 * 256 - 3);
        assert!((found.in_steps.max - 1.25).abs() < 1e-6 && (found.in_weights.max - 2.5).abs() < 1e-6);
        let n = 7.0 * 256.0;
        assert!((found.in_steps.mean - 1.8 / n).abs() < 1e-6);
        assert!((found.signed_mean - (0.3 - 0.25 - 1.25) / n).abs() < 1e-6);
        let histogram = residuals.histogram();
        assert_eq!((histogram.below, histogram.above), (1, 0), "code 0 against 1.25");
        assert_eq!(histogram.counts.iter().sum::<u64>(), 7 * 256 - 1);
    }

    #[test]
    fn a_negative_step_is_a_step() {
        let mut residuals = Residuals::default();
        let mut rotated = vec![0.0f32; 8 * CHUNK];
        rotated[7] = 0.5;
        residuals.add(&rotated, CHUNK, &[tile(-2)]);
        let found = residuals.rounding();
        assert_eq!((found.rounded_up, found.rounded_down), (1, 0), "0 is above 0.5 / -2");
        assert!((found.in_weights.max - 0.5).abs() < 1e-6);
    }

    #[test]
    fn nothing_is_nothing() {
        let found = Residuals::default().rounding();
        assert_eq!(found, Rounding::default());
    }
}
