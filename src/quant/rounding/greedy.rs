//! Moves single codes so that each output's mean is kept: what the errors of a row add up to under the mean input is undone by the cheapest flips.
//!
//! Needs only means, but corrects nothing else than the mean. Rows are independent of each other.

use crate::tcq::{CHUNK, GROUP, TILE_ROWS, Tile};

/// The largest mean inputs that are left alone, as a share of the columns: a flip there costs as much as it gains.
const PROTECTED: f64 = 0.05;

/// What flips did to a row: residuals of the mean output.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Flipped {
    /// Σ_j u_j w_j of the weights themselves.
    pub output: f64,
    /// Σ_j u_j (w_j - ŵ_j) before.
    pub before: f64,
    /// The same after.
    pub after: f64,
    /// Codes that were changed.
    pub flips: u32,
}

/// A code that can be moved to the other side of its weight.
struct Candidate {
    column: usize,
    code: i8,
    /// How far the weight is from its code, in steps: the nearer to a half, the less a flip costs.
    distance: f32,
    /// What the flip takes off the residual.
    impact: f64,
}

/// The columns whose codes may be flipped: all but those with the largest |mean| (stable; 5 % of them, rounded down).
pub fn unprotected(mean: &[f32]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..mean.len()).collect();
    order.sort_by(|&a, &b| mean[b].abs().total_cmp(&mean[a].abs()));
    let mut open = vec![true; mean.len()];
    order[..(PROTECTED * mean.len() as f64) as usize].iter().for_each(|&j| open[j] = false);
    open
}

/// Flips codes of rotated rows (whole stripes of eight) whose `tiles` an encoder has filled. `mean` is the mean input in the basis of the rotated weights, `open`
/// what [`unprotected`] says of it. Of the flips that reduce a row's residual, in the order of their cost, as many are made as bring it nearest
/// to zero: none, if none does. A flip never moves a code by more than one.
///
/// # Panics
/// If the shapes do not fit together.
pub fn flip_to_mean(weights: &[f32], tiles: &mut [Tile], mean: &[f32], open: &[bool]) -> Vec<Flipped> {
    let columns = mean.len();
    assert!(weights.len().is_multiple_of(columns * TILE_ROWS) && tiles.len() * TILE_ROWS * CHUNK == weights.len());
    let one = |(index, row): (usize, &[f32])| {
        let stripe = &mut tiles[index / TILE_ROWS * (columns / CHUNK)..][..columns / CHUNK];
        flip_row(row, index % TILE_ROWS, stripe, mean, open)
    };
    weights.chunks_exact(columns).enumerate().map(one).collect()
}

fn flip_row(weights: &[f32], row: usize, tiles: &mut [Tile], mean: &[f32], open: &[bool]) -> Flipped {
    let error = |column: usize, tile: &Tile| f64::from(weights[column]) - f64::from(tile.value(row, column % CHUNK));
    let before: f64 = (0..weights.len()).map(|j| f64::from(mean[j]) * error(j, &tiles[j / CHUNK])).sum();
    let output = weights.iter().zip(mean).map(|(&w, &u)| f64::from(w) * f64::from(u)).sum();
    let mut candidates: Vec<Candidate> =
        (0..weights.len()).filter(|&j| open[j]).filter_map(|j| candidate(j, weights[j], row, tiles, mean[j])).collect();
    candidates.retain(|candidate| candidate.impact * before > 0.0);
    candidates.sort_by(|a, b| b.distance.total_cmp(&a.distance)); // stable: equal costs in the order of the columns
    let (mut left, mut after, mut flips) = (before, before, 0);
    for (index, candidate) in candidates.iter().enumerate() {
        left -= candidate.impact;
        if left.abs() < after.abs() {
            (after, flips) = (left, index + 1);
        }
    }
    for candidate in &candidates[..flips] {
        tiles[candidate.column / CHUNK].set_code(row, candidate.column % CHUNK, candidate.code);
    }
    Flipped { output, before, after, flips: flips as u32 }
}

/// The flip of one code, if there is a code on the other side of the weight.
fn candidate(column: usize, weight: f32, row: usize, tiles: &[Tile], mean: f32) -> Option<Candidate> {
    let (tile, group) = (&tiles[column / CHUNK], column % CHUNK / GROUP);
    let (step, code) = (tile.step(row, group), tile.code(row, column % CHUNK));
    if step == 0.0 {
        return None;
    }
    let exact = (weight - tile.offset(row, group)) / step;
    let distance = exact - f32::from(code);
    let direction = if distance < 0.0 { -1 } else { 1 };
    let new = code + direction;
    (-8..=7).contains(&new).then(|| Candidate {
        column,
        code: new,
        distance: distance.abs(),
        impact: f64::from(mean) * f64::from(direction) * f64::from(step),
    })
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use half::f16;
    use proptest::prelude::*;

    use super::*;
    use crate::tcq::{Codec, Encoder};

    /// A stripe whose first row has steps of 1 (127 · 1/127) and offsets of 0.
    fn unit_stripe(codes: &[i8]) -> Vec<Tile> {
        let mut tile = Tile::zeroed();
        tile.scale[0] = f16::from_f32(127.0);
        tile.scale_code[0] = [1; 8];
        codes.iter().enumerate().for_each(|(column, &code)| tile.set_code(0, column, code));
        vec![tile]
    }

    #[test]
    fn by_hand() {
        // Errors .4, .3, -.2 under means of 1: a residual of .5. The flip of the first code takes 1 off and leaves -.5: no gain.
        let (mut weights, mut mean) = (vec![0.0; 8 * 256], vec![0.0; 256]);
        weights[..3].copy_from_slice(&[1.4, 2.3, 2.8]);
        mean[..3].fill(1.0);
        let open = vec![true; 256];
        let mut tiles = unit_stripe(&[1, 2, 3]);
        let rows = flip_to_mean(&weights, &mut tiles, &mean, &open);
        assert!((rows[0].before - 0.5).abs() < 1e-6 && rows[0].flips == 0 && rows[0].after == rows[0].before);
        // With .45 in a fourth channel the residual is .95; the costliest to keep goes first: .45, and leaves -.05.
        weights[3] = -2.55;
        mean[3] = 1.0;
        let mut tiles = unit_stripe(&[1, 2, 3, -3]);
        let rows = flip_to_mean(&weights, &mut tiles, &mean, &open);
        assert!((rows[0].before - 0.95).abs() < 1e-6 && (rows[0].after + 0.05).abs() < 1e-6, "{rows:?}");
        assert_eq!((rows[0].flips, tiles[0].code(0, 3), tiles[0].code(0, 0)), (1, -2, 1));
        // Protected, it stays; the next in order is .4, which leaves -.05 just as well.
        let mut open = vec![true; 256];
        open[3] = false;
        let mut tiles = unit_stripe(&[1, 2, 3, -3]);
        flip_to_mean(&weights, &mut tiles, &mean, &open);
        assert_eq!((tiles[0].code(0, 3), tiles[0].code(0, 0)), (-3, 2));
        // A code at the end of its range has nowhere to go.
        weights[0] = 7.4;
        let mut tiles = unit_stripe(&[7, 2, 3, -3]);
        flip_to_mean(&weights, &mut tiles, &mean, &open);
        assert_eq!(tiles[0].code(0, 0), 7);
    }

    #[test]
    fn a_twentieth_is_protected() {
        let mean: Vec<f32> = (0..256).map(|j| if j % 2 == 0 { j as f32 } else { -(j as f32) }).collect();
        let open = unprotected(&mean);
        assert_eq!(open.iter().filter(|open| !**open).count(), 12);
        assert!(!open[255] && !open[244] && open[243]);
    }

    proptest! {
        #[test]
        fn no_residual_grows_and_the_tiles_hold_it(
            weights in prop::collection::vec(-1.0f32..1.0, 8 * 256),
            mean in prop::collection::vec(-1.0f32..1.0, 256),
        ) {
            let codec = Codec::new(Encoder::Default);
            let mut tiles = vec![Tile::zeroed()];
            codec.encode_rotated(&weights, 256, &mut tiles).unwrap();
            let before = tiles.clone();
            let rows = flip_to_mean(&weights, &mut tiles, &mean, &unprotected(&mean));
            for (row, flipped) in rows.iter().enumerate() {
                let residual: f64 = (0..256)
                    .map(|j| f64::from(mean[j]) * (f64::from(weights[row * 256 + j]) - f64::from(tiles[0].value(row, j))))
                    .sum();
                prop_assert!((flipped.after - residual).abs() < 1e-5, "{} {residual}", flipped.after);
                prop_assert!(flipped.after.abs() <= flipped.before.abs());
                let changed = (0..256).filter(|&j| tiles[0].code(row, j) != before[0].code(row, j)).count();
                prop_assert_eq!(changed, flipped.flips as usize);
            }
        }
    }
}
