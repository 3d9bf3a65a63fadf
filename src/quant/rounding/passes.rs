//! The moves: error feedback, refitting of grids, coordinate descent.

use super::curvature::Curvature;
use super::panel::{Panel, tile_at};
use crate::math::products::{LANES, Lane, TOGETHER, add_products, add_scaled};
use crate::tcq::{CHUNK, CODE_SCALE, GROUP, GROUPS, TILE_ROWS, Tile};

/// How codes are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// Whether all codes are chosen anew with error feedback first.
    pub feedback: bool,
    /// Rounds of refitting grids and of coordinate descent after that.
    pub descents: u32,
    /// Whether grids are refitted in each round.
    pub refit: bool,
}

/// What became of some rows: sums of eᵀHe, and of e².
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounded {
    /// eᵀHe with the weights in place of their errors.
    pub energy: f64,
    /// eᵀHe of what the encoder had chosen.
    pub nearest: f64,
    /// eᵀHe of what was chosen.
    pub compensated: f64,
    /// The squared errors of the weights.
    pub error_sq: f64,
}

/// Chooses the codes (and grids) of at most [`LANES`] rotated rows anew, whose `tiles` an encoder has filled.
///
/// # Panics
/// If the rows are too many, or tiles and curvature have another shape.
///
/// Under a curvature [with noise](Curvature::with_noise) the codes are chosen for shrunken weights: those that come nearest to the output when noise
/// enters with the input. `nearest` and `compensated` are the errors against them, so what no weights can make up for is left out.
pub fn round_stripes(weights: &[f32], tiles: &mut [Tile], curvature: &Curvature, rounding: Rounding) -> Rounded {
    let columns = curvature.columns();
    let mut panel = Panel::new(weights, columns, tiles);
    let energy = objective(&panel.weights, panel.rows, curvature);
    let given = curvature.lost().map(|lost| shrink(&mut panel, curvature, lost));
    let nearest = objective(&panel.errors, panel.rows, curvature);
    if rounding.feedback {
        feed_back(&mut panel, curvature);
    }
    for _ in 0..rounding.descents {
        descend(&mut panel, curvature, rounding.refit.then_some(&mut *tiles));
    }
    panel.store_codes(columns, tiles);
    let compensated = objective(&panel.errors, panel.rows, curvature);
    if let Some(given) = given {
        panel.aim_at(given);
    }
    Rounded { energy, nearest, compensated, error_sq: panel.error_sq() }
}

/// Aims at w - (w ∘ lost) H⁻¹ in place of the weights w, which are given back.
fn shrink(panel: &mut Panel, curvature: &Curvature, lost: &[f32]) -> Vec<Lane> {
    let mut less: Vec<Lane> =
        panel.weights.iter().zip(lost).map(|(weights, lost)| weights.map(|weight| weight * lost)).collect();
    curvature.solve(&mut less);
    let mut targets = panel.weights.clone();
    targets.iter_mut().zip(&less).for_each(|(target, less)| add_scaled(target, -1.0, less));
    panel.aim_at(targets)
}

/// The sum of eᵀHe over the rows.
fn objective(errors: &[Lane], rows: usize, curvature: &Curvature) -> f64 {
    let mut total = 0.0;
    for first in (0..errors.len()).step_by(GROUP) {
        let gradient = gradient(errors, curvature, first);
        for (gradient, error) in gradient.iter().zip(&errors[first..]) {
            total += (0..rows).map(|lane| f64::from(gradient[lane]) * f64::from(error[lane])).sum::<f64>();
        }
    }
    total
}

/// (He) at the columns of a group, for each row.
fn gradient(errors: &[Lane], curvature: &Curvature, first: usize) -> [Lane; GROUP] {
    let mut sums = [[0.0; LANES]; GROUP];
    for (part, sums) in sums.as_chunks_mut::<TOGETHER>().0.iter_mut().enumerate() {
        let at = first + part * TOGETHER;
        add_products(sums, curvature.hessian().slab(at), errors);
    }
    sums
}

/// Rounds column after column; each is asked to make up for the errors of those before it.
fn feed_back(panel: &mut Panel, curvature: &Curvature) {
    let order = curvature.order();
    let mut errors: Vec<Lane> = vec![[0.0; LANES]; order.len()];
    for (block, columns) in order.chunks(GROUP).enumerate() {
        let first = block * GROUP;
        let mut carried = [[0.0; LANES]; GROUP];
        for (part, sums) in carried.as_chunks_mut::<TOGETHER>().0.iter_mut().enumerate() {
            let at = first + part * TOGETHER;
            add_products(sums, curvature.feedback().slab(at), &errors[..first]);
        }
        for (k, &column) in columns.iter().enumerate() {
            let column = column as usize;
            let (grid, weights) = (&panel.grids[column / GROUP], &panel.weights[column]);
            let mut targets = *weights;
            add_scaled(&mut targets, 1.0, &carried[k]);
            let codes = grid.nearest(&targets);
            let error = &mut errors[first + k];
            for lane in 0..LANES {
                error[lane] = weights[lane] - (grid.step[lane] * codes[lane] + grid.offset[lane]);
            }
            panel.codes[column] = codes;
            panel.errors[column] = *error;
            for (later, sums) in carried.iter_mut().enumerate().skip(k + 1) {
                add_scaled(sums, curvature.feedback().at(first + k, first + later), error);
            }
        }
    }
}

/// H within a group of columns.
struct Bend([[f32; GROUP]; GROUP]);

impl Bend {
    fn new(curvature: &Curvature, first: usize) -> Self {
        Self(std::array::from_fn(|i| std::array::from_fn(|j| curvature.hessian().at(first + i, first + j))))
    }
}

/// One round over all groups: the grid refitted (into `tiles`, if there are any), then each code moved to where the objective is least.
fn descend(panel: &mut Panel, curvature: &Curvature, mut tiles: Option<&mut [Tile]>) {
    for group in 0..panel.grids.len() {
        let first = group * GROUP;
        let bend = Bend::new(curvature, first);
        let mut gradient = gradient(&panel.errors, curvature, first);
        if let Some(tiles) = tiles.as_deref_mut() {
            refit(panel, &bend, group, &mut gradient, tiles);
        }
        for k in 0..GROUP {
            let column = first + k;
            let row = &bend.0[k];
            let (grid, inverse) = (&panel.grids[group], 1.0 / row[k]);
            let mut targets = panel.weights[column];
            for lane in 0..LANES {
                targets[lane] -= panel.errors[column][lane] - gradient[k][lane] * inverse;
            }
            let codes = grid.nearest(&targets);
            let mut moved = [0.0; LANES];
            for lane in 0..LANES {
                let error = panel.weights[column][lane] - (grid.step[lane] * codes[lane] + grid.offset[lane]);
                moved[lane] = error - panel.errors[column][lane];
                panel.errors[column][lane] = error;
            }
            panel.codes[column] = codes;
            for (gradient, &factor) in gradient.iter_mut().zip(row) {
                add_scaled(gradient, factor, &moved);
            }
        }
    }
}

/// Moves the step and the offset of a group of each row to the stored values next to those that fit its codes best, where that helps.
fn refit(panel: &mut Panel, bend: &Bend, group: usize, gradient: &mut [Lane; GROUP], tiles: &mut [Tile]) {
    let (first, columns) = (group * GROUP, panel.weights.len());
    let codes: [Lane; GROUP] = std::array::from_fn(|k| panel.codes[first + k]);
    let mut products = [[0.0; LANES]; GROUP];
    let mut total = 0.0;
    for (k, product) in products.iter_mut().enumerate() {
        let row = &bend.0[k];
        total += row.iter().sum::<f32>();
        row.iter().zip(&codes).for_each(|(&factor, codes)| add_scaled(product, factor, codes));
    }
    for lane in 0..panel.rows {
        let sum = |of: &dyn Fn(usize) -> f32| (0..GROUP).map(of).sum::<f32>();
        let fit = Fit {
            slope: [sum(&|k| codes[k][lane] * gradient[k][lane]), sum(&|k| gradient[k][lane])],
            bend: [sum(&|k| codes[k][lane] * products[k][lane]), sum(&|k| products[k][lane]), total],
        };
        let tile = &mut tiles[tile_at(lane, first, columns)];
        if !fit.apply(tile, lane % TILE_ROWS, group % GROUPS) {
            continue;
        }
        panel.load_grid(tiles, columns, lane, group);
        let grid = &panel.grids[group];
        let mut moved = [0.0; GROUP];
        for k in 0..GROUP {
            let value = grid.step[lane] * codes[k][lane] + grid.offset[lane];
            let error = panel.weights[first + k][lane] - value;
            moved[k] = error - panel.errors[first + k][lane];
            panel.errors[first + k][lane] = error;
        }
        for (k, gradient) in gradient.iter_mut().enumerate() {
            let row = &bend.0[k];
            gradient[lane] += row.iter().zip(&moved).map(|(a, b)| a * b).sum::<f32>();
        }
    }
}

/// The objective of one group of one row as a function of changes of its step and offset: -2·slope·d + dᵀ·bend·d.
struct Fit {
    slope: [f32; 2],
    /// The elements (0,0), (0,1) and (1,1).
    bend: [f32; 3],
}

impl Fit {
    fn change(&self, step: f32, offset: f32) -> f32 {
        let [a, b, c] = self.bend;
        let linear = self.slope[0] * step + self.slope[1] * offset;
        a * step * step + 2.0 * b * step * offset + c * offset * offset - 2.0 * linear
    }

    /// The changes that would be best if they could be stored.
    fn best(&self, with_offset: bool) -> (f32, f32) {
        let [a, b, c] = self.bend;
        let determinant = a * c - b * b;
        if with_offset && determinant > 1e-6 * a * c {
            let step = (self.slope[0] * c - self.slope[1] * b) / determinant;
            return (step, (self.slope[1] * a - self.slope[0] * b) / determinant);
        }
        (if a > 0.0 { self.slope[0] / a } else { 0.0 }, 0.0)
    }

    /// Changes the codes of step and offset if the objective becomes smaller.
    fn apply(&self, tile: &mut Tile, row: usize, group: usize) -> bool {
        let unit = |stored: f32| stored / CODE_SCALE;
        let (scale, zero) = (unit(tile.scale[row].to_f32()), unit(tile.zero[row].to_f32()));
        if scale == 0.0 {
            return false;
        }
        let (old_step, old_offset) = (tile.scale_code[row][group], tile.zero_code[row][group]);
        let wanted = f32::from(old_step) + self.best(zero != 0.0).0 / scale;
        let mut best = (0.0, old_step, old_offset);
        for code in [wanted.floor(), wanted.ceil()] {
            let code = code.clamp(-CODE_SCALE, CODE_SCALE);
            let step = (code - f32::from(old_step)) * scale;
            let offset_code = if zero == 0.0 || self.bend[2] <= 0.0 {
                f32::from(old_offset)
            } else {
                let offset = (self.slope[1] - self.bend[1] * step) / self.bend[2];
                (f32::from(old_offset) + offset / zero).round_ties_even().clamp(-CODE_SCALE, CODE_SCALE)
            };
            let change = self.change(step, (offset_code - f32::from(old_offset)) * zero);
            if change < best.0 {
                best = (change, code as i8, offset_code as i8);
            }
        }
        (tile.scale_code[row][group], tile.zero_code[row][group]) = (best.1, best.2);
        best.0 < 0.0
    }
}

const _: () = assert!(GROUP.is_multiple_of(TOGETHER) && CHUNK.is_multiple_of(GROUP) && LANES.is_multiple_of(TILE_ROWS));

#[cfg(test)]
mod tests;
