//! Some rows of a matrix on their way to codes, turned so that the rows lie side by side: what is done to one is done to all of them at once.

use crate::math::products::{LANES, Lane};
use crate::tcq::{CHUNK, GROUP, TILE_ROWS, Tile};

/// The grid of a group of 32 columns, for each row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) step: Lane,
    pub(super) inverse: Lane,
    pub(super) offset: Lane,
}

/// Rotated weights, their codes and their errors (weight less value), column after column; and the grids, group after group.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) rows: usize,
    pub(super) weights: Vec<Lane>,
    pub(super) codes: Vec<Lane>,
    pub(super) errors: Vec<Lane>,
    pub(super) grids: Vec<Grid>,
}

impl Panel {
    /// Takes up rotated `weights` and the `tiles` that an encoder made of them (stripe after stripe of eight rows).
    ///
    /// # Panics
    /// If there are more than [`LANES`] rows, or tiles for another shape.
    pub(super) fn new(weights: &[f32], columns: usize, tiles: &[Tile]) -> Self {
        let rows = weights.len() / columns;
        assert!(rows <= LANES && weights.len() == rows * columns && tiles.len() * TILE_ROWS * CHUNK == weights.len());
        let none = Grid { step: [0.0; LANES], inverse: [0.0; LANES], offset: [0.0; LANES] };
        let mut panel = Self {
            rows,
            weights: vec![[0.0; LANES]; columns],
            codes: vec![[0.0; LANES]; columns],
            errors: vec![[0.0; LANES]; columns],
            grids: vec![none; columns / GROUP],
        };
        for (row, values) in weights.chunks_exact(columns).enumerate() {
            for (column, &value) in values.iter().enumerate() {
                let tile = &tiles[tile_at(row, column, columns)];
                panel.weights[column][row] = value;
                panel.codes[column][row] = f32::from(tile.code(row % TILE_ROWS, column % CHUNK));
            }
            for group in 0..columns / GROUP {
                panel.load_grid(tiles, columns, row, group);
            }
        }
        panel.update_errors();
        panel
    }

    /// Reads the grid of a group of one row.
    pub(super) fn load_grid(&mut self, tiles: &[Tile], columns: usize, row: usize, group: usize) {
        let tile = &tiles[tile_at(row, group * GROUP, columns)];
        let step = tile.step(row % TILE_ROWS, group % (CHUNK / GROUP));
        let grid = &mut self.grids[group];
        grid.step[row] = step;
        grid.inverse[row] = if step == 0.0 { 0.0 } else { 1.0 / step };
        grid.offset[row] = tile.offset(row % TILE_ROWS, group % (CHUNK / GROUP));
    }

    /// Takes other weights, column after column, and gives those back that it had.
    pub(super) fn aim_at(&mut self, weights: Vec<Lane>) -> Vec<Lane> {
        let given = std::mem::replace(&mut self.weights, weights);
        self.update_errors();
        given
    }

    /// Computes all errors anew.
    fn update_errors(&mut self) {
        for column in 0..self.weights.len() {
            let (grid, code) = (&self.grids[column / GROUP], &self.codes[column]);
            let (weights, errors) = (&self.weights[column], &mut self.errors[column]);
            for lane in 0..LANES {
                errors[lane] = weights[lane] - (grid.step[lane] * code[lane] + grid.offset[lane]);
            }
        }
    }

    /// Writes the codes into the tiles.
    pub(super) fn store_codes(&self, columns: usize, tiles: &mut [Tile]) {
        for row in 0..self.rows {
            for (column, codes) in self.codes.iter().enumerate() {
                tiles[tile_at(row, column, columns)].set_code(row % TILE_ROWS, column % CHUNK, codes[row] as i8);
            }
        }
    }

    /// The squared errors of all rows.
    pub(super) fn error_sq(&self) -> f64 {
        let of = |errors: &Lane| errors[..self.rows].iter().map(|&e| f64::from(e) * f64::from(e)).sum::<f64>();
        self.errors.iter().map(of).sum()
    }
}

/// Where the tile of an element lies.
pub(super) fn tile_at(row: usize, column: usize, columns: usize) -> usize {
    row / TILE_ROWS * (columns / CHUNK) + column / CHUNK
}

impl Grid {
    /// The code nearest to each target.
    #[inline]
    pub(super) fn nearest(&self, targets: &Lane) -> Lane {
        let mut codes = [0.0; LANES];
        for lane in 0..LANES {
            let code = (targets[lane] - self.offset[lane]) * self.inverse[lane];
            codes[lane] = code.round_ties_even().clamp(-8.0, 7.0);
        }
        codes
    }
}
