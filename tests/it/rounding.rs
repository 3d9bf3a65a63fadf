//! Rounding against an implementation that shares nothing with ours: GPTQ as its paper has it, in numpy.

use std::process::Command;

use bytemuck::Zeroable;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use tcq4::calib::Hessian;
use tcq4::calib::hessian::USUAL_UNIT;
use tcq4::quant::rounding::{Curvature, Rounding, round_stripes};
use tcq4::tcq::{Codec, Encoder, Tile};

use crate::support::{Dir, skip};

const ROWS: usize = 16;
const COLUMNS: usize = 512;
const DAMP: f64 = 0.01;

/// The columns of the damped matrix in descending order of its diagonal; after each column the rest makes up for its error along the row of the upper
/// factor of the inverse. Reads weights, second moment, steps and offsets; prints codes.
const GPTQ: &str = "
import sys, numpy as np
folder, rows, columns, damp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
read = lambda name, shape: np.fromfile(f'{folder}/{name}', dtype='<f4').astype(np.float64).reshape(shape)
W, H = read('w', (rows, columns)), read('h', (columns, columns))
step, offset = (np.repeat(read(n, (rows, columns // 32)), 32, axis=1) for n in ('step', 'offset'))
H += np.eye(columns) * damp * np.mean(np.diag(H))
order = np.argsort(-np.diag(H), kind='stable')
U = np.linalg.cholesky(np.linalg.inv(H[np.ix_(order, order)])).T
W, Q = W[:, order], np.zeros((rows, columns))
for k, column in enumerate(order):
    s, z = step[:, column], offset[:, column]
    Q[:, k] = np.clip(np.round((W[:, k] - z) / s), -8, 7)
    error = (W[:, k] - (Q[:, k] * s + z)) / U[k, k]
    W[:, k:] -= np.outer(error, U[k, k:])
codes = np.empty((rows, columns), dtype=np.int8)
codes[:, order] = Q
codes.tofile(f'{folder}/codes')
";

fn write(dir: &Dir, name: &str, values: &[f32]) {
    dir.write(name, bytemuck::cast_slice(values));
}

#[test]
fn feedback_gives_the_codes_of_gptq_in_numpy() {
    let python = std::env::var_os("TCQ4_PYTHON").unwrap_or_else(|| "python3".into());
    let numpy = Command::new(&python).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|done| done.status.success()) {
        skip("neither TCQ4_PYTHON nor python3 has numpy");
        return;
    }
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut inputs: Vec<f32> = (0..1000 * COLUMNS).map(|_| random.random_range(-1.0f32..1.0)).collect();
    for row in inputs.chunks_exact_mut(COLUMNS) {
        for j in 1..COLUMNS {
            row[j] = row[j] * (1.0 + (j % 5) as f32) + 0.7 * row[j - 1];
        }
    }
    let mut hessian = Hessian::new(COLUMNS, USUAL_UNIT);
    hessian.add(&inputs, &(0..1000).map(|t| t * COLUMNS).collect::<Vec<_>>(), None).unwrap();
    let mean = hessian.mean();
    let mut weights: Vec<f32> = (0..ROWS * COLUMNS).map(|_| random.random_range(-1.0f32..1.0)).collect();
    let codec = Codec::new(Encoder::Default);
    codec.fwht(&mut weights);
    let mut tiles = vec![Tile::zeroed(); ROWS / 8 * COLUMNS / 256];
    for (rows, tiles) in weights.chunks_exact(8 * COLUMNS).zip(tiles.chunks_exact_mut(COLUMNS / 256)) {
        codec.encode_rotated(rows, COLUMNS, tiles).unwrap();
    }
    let at = |row: usize, column: usize| &tiles[row / 8 * (COLUMNS / 256) + column / 256];
    let groups = || (0..ROWS).flat_map(|row| (0..COLUMNS / 32).map(move |group| (row, group)));
    let dir = Dir::new();
    write(&dir, "w", &weights);
    write(&dir, "h", &mean);
    write(&dir, "step", &groups().map(|(row, g)| at(row, g * 32).step(row % 8, g % 8)).collect::<Vec<_>>());
    write(&dir, "offset", &groups().map(|(row, g)| at(row, g * 32).offset(row % 8, g % 8)).collect::<Vec<_>>());
    let arguments = [ROWS.to_string(), COLUMNS.to_string(), DAMP.to_string()];
    let done = Command::new(&python).args(["-c", GPTQ]).arg(dir.path()).args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let expected: Vec<i8> = dir.read("codes").into_iter().map(|byte| byte as i8).collect();

    let before = tiles.clone();
    let curvature = Curvature::new(&mean, COLUMNS, DAMP, true).unwrap();
    round_stripes(&weights, &mut tiles, &curvature, Rounding { feedback: true, descents: 0, refit: false });
    let code = |tiles: &[Tile], i: usize| {
        let (row, column) = (i / COLUMNS, i % COLUMNS);
        tiles[row / 8 * (COLUMNS / 256) + column / 256].code(row % 8, column % 256)
    };
    let differing = |tiles: &[Tile]| (0..ROWS * COLUMNS).filter(|&i| code(tiles, i) != expected[i]).count();
    // A tie that rounds otherwise in f32 changes what follows in its row; most rows have none.
    assert!(differing(&tiles) < ROWS * COLUMNS / 100, "{} codes differ", differing(&tiles));
    assert!(differing(&before) > ROWS * COLUMNS / 10, "the nearest codes are others: {}", differing(&before));
}
