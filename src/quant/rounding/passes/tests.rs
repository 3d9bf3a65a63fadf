use bytemuck::Zeroable;

use super::*;
use crate::quant::rounding::ActivationNoise;
use crate::tcq::{Codec, Encoder};

const COLUMNS: usize = 256;

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() + next() + next()).collect()
}

/// The second moment of rows with correlated channels.
fn hessian(columns: usize) -> Vec<f32> {
    let rows = 2 * columns;
    let mut x = noise(rows * columns, 5);
    for row in x.chunks_exact_mut(columns) {
        for j in 1..columns {
            row[j] = 0.8 * row[j - 1] + row[j] * (1.0 + (j % 7) as f32);
        }
    }
    let mut h = vec![0.0f32; columns * columns];
    for i in 0..columns {
        for j in 0..columns {
            let sum: f64 = x.chunks_exact(columns).map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
            h[i * columns + j] = (sum / rows as f64) as f32;
        }
    }
    h
}

struct Case {
    weights: Vec<f32>,
    tiles: Vec<Tile>,
    curvature: Curvature,
}

fn case(rows: usize, columns: usize) -> Case {
    let mut weights = noise(rows * columns, 7);
    let mut tiles = vec![Tile::zeroed(); weights.len() / (TILE_ROWS * CHUNK)];
    let codec = Codec::new(Encoder::Default);
    codec.fwht(&mut weights);
    for (rows, tiles) in weights.chunks_exact(TILE_ROWS * columns).zip(tiles.chunks_exact_mut(columns / CHUNK)) {
        codec.encode_rotated(rows, columns, tiles).unwrap();
    }
    Case { weights, tiles, curvature: Curvature::new(&hessian(columns), columns, 0.01, true).unwrap() }
}

/// The errors of one row, read back from the tiles.
fn errors(case: &Case, tiles: &[Tile], row: usize, columns: usize) -> Vec<f64> {
    let error = |column: usize| {
        let value = tiles[tile_at(row, column, columns)].value(row % TILE_ROWS, column % CHUNK);
        f64::from(case.weights[row * columns + column]) - f64::from(value)
    };
    (0..columns).map(error).collect()
}

/// eᵀHe, from its definition.
fn naive_objective(case: &Case, tiles: &[Tile], columns: usize) -> f64 {
    let one = |row: usize| {
        let e = errors(case, tiles, row, columns);
        let product =
            |i: usize| e.iter().enumerate().map(|(j, e)| f64::from(case.curvature.hessian().at(i, j)) * e).sum::<f64>();
        (0..columns).map(|i| e[i] * product(i)).sum::<f64>()
    };
    (0..case.weights.len() / columns).map(one).sum()
}

fn run(case: &Case, rounding: Rounding) -> (Vec<Tile>, Rounded) {
    let mut tiles = case.tiles.clone();
    let numbers = round_stripes(&case.weights, &mut tiles, &case.curvature, rounding);
    (tiles, numbers)
}

const NOTHING: Rounding = Rounding { feedback: false, descents: 0, refit: false };

#[test]
fn the_objective_is_its_definition_and_nothing_changes_nothing() {
    let case = case(16, 512);
    let (tiles, Rounded { energy, nearest: before, compensated: after, error_sq }) = run(&case, NOTHING);
    assert!(tiles == case.tiles && before == after);
    let naive = naive_objective(&case, &case.tiles, 512);
    assert!((before - naive).abs() < 1e-4 * naive, "{before} {naive}");
    let squares: f64 = (0..16).flat_map(|row| errors(&case, &tiles, row, 512)).map(|e| e * e).sum();
    assert!((error_sq - squares).abs() < 1e-4 * squares);
    let mut product = 0.0;
    for row in case.weights.chunks(512) {
        for (i, a) in row.iter().enumerate() {
            let sum: f64 =
                row.iter().enumerate().map(|(j, b)| f64::from(case.curvature.hessian().at(i, j)) * f64::from(*b)).sum();
            product += f64::from(*a) * sum;
        }
    }
    assert!((energy - product).abs() < 1e-4 * product, "{energy} {product}");
}

#[test]
fn every_move_lowers_the_objective_and_they_add_up() {
    let case = case(32, COLUMNS);
    let objective = |rounding| {
        let (tiles, Rounded { nearest: before, compensated: after, .. }) = run(&case, rounding);
        let naive = naive_objective(&case, &tiles, COLUMNS);
        assert!((after - naive).abs() < 1e-3 * naive, "the tiles hold what was measured: {after} {naive}");
        after / before
    };
    let feedback = objective(Rounding { feedback: true, ..NOTHING });
    let descent = objective(Rounding { descents: 2, ..NOTHING });
    let both = objective(Rounding { feedback: true, descents: 2, ..NOTHING });
    let all = objective(Rounding { feedback: true, descents: 2, refit: true });
    assert!(feedback < 0.7 && descent < 1.0, "{feedback} {descent}");
    assert!(both < feedback && all < both, "{feedback} {both} {all}");
}

/// Error feedback as its definition has it: column after column, sums over all earlier errors, in f64.
#[test]
fn feedback_is_its_definition() {
    let case = case(8, COLUMNS);
    let (tiles, _) = run(&case, Rounding { feedback: true, ..NOTHING });
    let order = case.curvature.order();
    for row in 0..8 {
        let mut e = vec![0.0; COLUMNS];
        let mut differing = 0;
        for (k, &column) in order.iter().enumerate() {
            let column = column as usize;
            let tile = &case.tiles[tile_at(row, column, COLUMNS)];
            let carried: f64 = (0..k).map(|i| e[i] * f64::from(case.curvature.feedback().at(i, k))).sum();
            let weight = f64::from(case.weights[row * COLUMNS + column]);
            let (step, offset) =
                (f64::from(tile.step(row, column / GROUP)), f64::from(tile.offset(row, column / GROUP)));
            let code = ((weight + carried - offset) / step).round_ties_even().clamp(-8.0, 7.0);
            let chosen = tiles[tile_at(row, column, COLUMNS)].code(row, column);
            differing += u32::from(code != f64::from(chosen));
            e[k] = weight - (step * f64::from(chosen) + offset);
        }
        assert!(differing <= 1, "row {row}: {differing} codes differ (rounding of f32 sums may turn a tie)");
    }
}

#[test]
fn a_diagonal_matrix_asks_for_nearest_codes() {
    let mut case = case(8, COLUMNS);
    let mut diagonal = vec![0.0; COLUMNS * COLUMNS];
    (0..COLUMNS).for_each(|i| diagonal[i * COLUMNS + i] = 1.0 + i as f32);
    case.curvature = Curvature::new(&diagonal, COLUMNS, 0.01, true).unwrap();
    let (tiles, Rounded { nearest: before, compensated: after, .. }) =
        run(&case, Rounding { feedback: true, descents: 1, refit: false });
    assert!(after <= before && after > 0.99 * before);
    assert_eq!(tiles, case.tiles);
}

#[test]
fn a_single_flip_of_any_code_does_not_help_after_descent() {
    let case = case(8, COLUMNS);
    let (tiles, Rounded { compensated: after, .. }) =
        run(&case, Rounding { feedback: true, descents: 12, refit: false });
    let mut better = 0;
    for column in (0..COLUMNS).step_by(5) {
        for by in [-1, 1] {
            let mut other = tiles.clone();
            let code = other[0].code(3, column) + by;
            if (-8..=7).contains(&code) {
                other[0].set_code(3, column, code);
                better += u32::from(naive_objective(&case, &other, COLUMNS) < after * (1.0 - 1e-6));
            }
        }
    }
    assert_eq!(better, 0);
}

#[test]
fn damping_is_raised_until_it_works() {
    let mut singular = vec![1.0f32; 64 * 64];
    singular[0] = 0.5; // below what the others imply: not positive
    let curvature = Curvature::new(&singular, 64, 1e-4, true).unwrap();
    assert!(curvature.damping().retries > 0 && curvature.damping().share > 1e-4);
    assert!(Curvature::new(&[0.0; 16], 4, 0.01, true).is_none());
    assert!(Curvature::new(&[f32::NAN; 16], 4, 0.01, true).is_none());
}

#[test]
fn solving_undoes_the_product_with_the_second_moment() {
    let case = case(8, COLUMNS);
    let wanted: Vec<Lane> =
        (0..COLUMNS).map(|j| std::array::from_fn(|lane| ((j * 31 + lane * 7) % 19) as f32)).collect();
    let product = |j: usize| {
        let mut sums = [0.0; LANES];
        (0..COLUMNS).for_each(|i| add_scaled(&mut sums, case.curvature.hessian().at(i, j), &wanted[i]));
        sums
    };
    let mut rows: Vec<Lane> = (0..COLUMNS).map(product).collect();
    case.curvature.solve(&mut rows);
    for (found, wanted) in rows.iter().flatten().zip(wanted.iter().flatten()) {
        assert!((found - wanted).abs() < 2e-2, "{found} {wanted}");
    }
}

/// Σ E|w·x − v·(x + n)|² over the rows, for the values v of the tiles and a noise that does not depend on the input.
fn error_with_noise(case: &Case, tiles: &[Tile], hessian: &[f32], power: &[f32]) -> f64 {
    let one = |row: usize| {
        let e = errors(case, tiles, row, COLUMNS);
        let bent = |i: usize| (0..COLUMNS).map(|j| f64::from(hessian[i * COLUMNS + j]) * e[j]).sum::<f64>();
        let value = |i: usize| f64::from(case.weights[row * COLUMNS + i]) - e[i];
        (0..COLUMNS).map(|i| e[i] * bent(i) + f64::from(power[i]) * value(i) * value(i)).sum::<f64>()
    };
    (0..case.weights.len() / COLUMNS).map(one).sum()
}

#[test]
fn noise_is_made_up_for_by_as_much_as_is_asked() {
    let mut case = case(32, COLUMNS);
    let hessian = hessian(COLUMNS);
    let power: Vec<f32> = (0..COLUMNS).map(|j| 0.1 * hessian[j * (COLUMNS + 1)]).collect();
    let noise = ActivationNoise { power: power.clone(), with_input: vec![0.0; COLUMNS] };
    let all = Rounding { feedback: true, descents: 2, refit: true };
    let plain = error_with_noise(&case, &run(&case, all).0, &hessian, &power);
    let mut error = |share| {
        case.curvature = Curvature::with_noise(hessian.clone(), &noise, share, 0.01, true).unwrap();
        let (tiles, rounded) = run(&case, all);
        let squares: f64 = (0..32).flat_map(|row| errors(&case, &tiles, row, COLUMNS)).map(|e| e * e).sum();
        assert!((rounded.error_sq - squares).abs() < 1e-4 * squares, "the weights' errors are against what was given");
        assert!(rounded.compensated < rounded.nearest);
        error_with_noise(&case, &tiles, &hessian, &power)
    };
    let (none, half, full) = (error(0.0), error(0.5), error(1.0));
    assert!(full < half && half < none && full < 0.95 * plain, "{plain} {none} {half} {full}");
}
