//! The calibration operations against an implementation that shares nothing with ours: numpy, from their definitions.

use std::process::Command;

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use tcq4::calib::ops::{
    ColumnGrid, GridRule, HessianSum, Matrix, UpperFactor, awq_channel_scores, fisher_information, gptq_hessian_update,
    gptq_quantize_column,
};

use crate::support::{Dir, python_with_numpy, skip};

const TOKENS: usize = 300;
const ROWS: usize = 24;
const COLUMNS: usize = 96;
const GROUP: usize = 16;

/// U as the textbook has it, over the inverse; the column loop in f64. Reads x, w and h0; writes a file for each result.
const OPS: &str = "
import sys, numpy as np
folder, tokens, rows, columns, group = sys.argv[1], *map(int, sys.argv[2:6])
read = lambda name, shape: np.fromfile(f'{folder}/{name}', dtype='<f4').astype(np.float64).reshape(shape)
def write(name, values):
    np.asarray(values, dtype='<f4').tofile(f'{folder}/{name}')
X, W, H0 = read('x', (tokens, columns)), read('w', (rows, columns)), read('h0', (columns, columns))
write('awq', (np.abs(W) * np.abs(X).max(axis=0)).mean(axis=0))
write('fisher', np.square(X).mean(axis=0))
write('update', H0 + 2 / tokens * X.T @ X)
H = 2 * X.T @ X / tokens
dead = np.diag(H) == 0
D = H + 0.01 * np.diag(H).mean() * np.eye(columns)
D[dead, dead] = 1
U = np.linalg.cholesky(np.linalg.inv(D)).T
write('factor', U)
away = lambda v: np.copysign(np.floor(np.abs(v) + 0.5), v)
for name, symmetric, reference in [('sym', 1, 0), ('asym', 0, 0), ('sym_reference', 1, 1), ('asym_reference', 0, 1)]:
    w, q = W.copy(), np.zeros_like(W)
    for c in range(columns):
        if c % group == 0:
            part = w[:, c:c + group]
            if symmetric:
                half, s, z = (7.5 if reference else 7.0), None, 0
                s = np.abs(part).max(axis=1) / half
            else:
                low, high = part.min(axis=1), part.max(axis=1)
                if not reference:
                    low, high = np.minimum(low, 0), np.maximum(high, 0)
                s = (high - low) / 15
                z = np.clip(away(-low / s), 0, 15)
        if symmetric:
            q[:, c] = np.clip(away(w[:, c] / s), *((-7.5, 6.5) if reference else (-8, 7))) * s
        else:
            q[:, c] = (np.clip(away(w[:, c] / s + z), 0, 15) - z) * s
        w[:, c:] -= np.outer((w[:, c] - q[:, c]) / U[c, c], U[c, c:])
    write(name, q)
";

fn close(found: &[f32], expected: &[f32], tolerance: f32) -> bool {
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance * largest)
}

/// Correlated inputs, with one channel that is never excited.
fn inputs(random: &mut ChaCha8Rng) -> Vec<f32> {
    let mut x: Vec<f32> = (0..TOKENS * COLUMNS).map(|_| random.random_range(-1.0f32..1.0)).collect();
    for row in x.chunks_exact_mut(COLUMNS) {
        (1..COLUMNS).for_each(|j| row[j] = row[j] * (1.0 + (j % 5) as f32) + 0.7 * row[j - 1]);
        row[40] = 0.0;
    }
    x
}

#[test]
fn the_operations_agree_with_numpy() {
    let Some(python) = python_with_numpy() else {
        skip("neither TCQ4_PYTHON nor python3 has numpy");
        return;
    };
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let x = inputs(&mut random);
    let mut uniform = |len: usize| (0..len).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<f32>>();
    let (w, h0) = (uniform(ROWS * COLUMNS), uniform(COLUMNS * COLUMNS));
    let dir = Dir::new();
    for (name, values) in [("x", &x), ("w", &w), ("h0", &h0)] {
        dir.write(name, bytemuck::cast_slice(values));
    }
    let shape = [TOKENS, ROWS, COLUMNS, GROUP].map(|n| n.to_string());
    let done = Command::new(&python).args(["-c", OPS]).arg(dir.path()).args(shape).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let expected = |name: &str| -> Vec<f32> {
        dir.read(name).as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };

    let (activations, weights) = (Matrix::new(&x, TOKENS, COLUMNS).unwrap(), Matrix::new(&w, ROWS, COLUMNS).unwrap());
    assert!(close(&awq_channel_scores(activations, weights).unwrap(), &expected("awq"), 1e-6));
    assert!(close(&fisher_information(activations).unwrap(), &expected("fisher"), 1e-6));
    let update = gptq_hessian_update(Matrix::new(&h0, COLUMNS, COLUMNS).unwrap(), activations).unwrap();
    assert!(close(&update, &expected("update"), 1e-6));
    let mut sum = HessianSum::new(COLUMNS);
    sum.add(activations).unwrap();
    let hessian = sum.mean();
    let factor = UpperFactor::of_hessian(Matrix::new(&hessian, COLUMNS, COLUMNS).unwrap(), 0.01).unwrap();
    assert_eq!(factor.dead(), [40]);
    assert!(close(factor.values(), &expected("factor"), 1e-4));
    for (name, symmetric, rule) in [
        ("sym", true, GridRule::Corrected),
        ("asym", false, GridRule::Corrected),
        ("sym_reference", true, GridRule::Reference),
        ("asym_reference", false, GridRule::Reference),
    ] {
        let grid = ColumnGrid { bits: 4, group: GROUP, symmetric, rule };
        let found = gptq_quantize_column(weights, &factor, grid).unwrap().values;
        let expected = expected(name);
        // A tie that rounds otherwise in f32 changes what follows in its row; most rows have none.
        let far = found.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > 1e-3).count();
        assert!(far < ROWS * COLUMNS / 100, "{name}: {far} weights differ");
        let moved = found.iter().zip(&w).filter(|(a, b)| (*a - *b).abs() > 0.1).count();
        assert!(moved > 0, "{name}: feedback moves weights by more than a step");
    }
}
