//! What choosing the codes of one matrix by GPTQ costs, step by step: medians of three runs on all threads.
//!
//! `[TCQ4_BENCH_SIZE=4096] cargo bench --bench rounding`: a square matrix, and 2048 rows of inputs.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::time::Instant;

use bytemuck::Zeroable;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use rayon::prelude::*;
use tcq4::calib::Hessian;
use tcq4::calib::hessian::Unit;
use tcq4::math::products::{LANES, TOGETHER, add_products};
use tcq4::quant::Transform;
use tcq4::quant::rounding::{Curvature, Rounding, rotated, round_stripes};
use tcq4::tcq::{Codec, Encoder, Tile};

const ROWS_OF_INPUT: usize = 2048;
const RUNS: usize = 3;
/// Rows of weights that are rounded together.
const STRIPE: usize = 32;

/// Seconds of the steps of a run.
type Seconds = [f64; 5];
const STEPS: [&str; 5] = ["second moment", "transform", "factor", "encode", "round"];

fn main() {
    let size = std::env::var("TCQ4_BENCH_SIZE").ok().and_then(|n| n.parse().ok()).unwrap_or(4096);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut noise = |len: usize| -> Vec<f32> { (0..len).map(|_| random.random_range(-1.0f32..1.0)).collect() };
    let (inputs, weights) = (noise(ROWS_OF_INPUT * size), noise(size * size));
    let runs: Vec<Seconds> = (0..RUNS).map(|_| run(size, &inputs, &weights)).collect();
    println!("{size} x {size}, {ROWS_OF_INPUT} rows of input, {} threads", rayon::current_num_threads());
    for (step, name) in STEPS.iter().enumerate() {
        println!("{name:<14} {:7.3} s", median(runs.iter().map(|run| run[step])));
    }
    let moment = median(runs.iter().map(|run| run[0]));
    let products = (ROWS_OF_INPUT * size) as f64 * (size + 32) as f64;
    println!("second moment: {:.1} GFLOP/s; registers alone: {:.1}", products / moment / 1e9, peak());
    println!("{:<14} {:7.3} s", "all of it", median(runs.iter().map(|run| run.iter().sum())));
}

/// f32 products and sums of all threads in 10⁹ a second, with everything in registers or the first cache: what the processor does at best without
/// fused operations, which would round otherwise elsewhere.
fn peak() -> f64 {
    const LENGTH: usize = 64;
    const TURNS: usize = 40_000;
    let threads = rayon::current_num_threads();
    let started = Instant::now();
    let sums: f32 = (0..threads)
        .into_par_iter()
        .map(|thread| {
            let factors = std::hint::black_box(vec![[1.0 + thread as f32 * 1e-3; TOGETHER]; LENGTH]);
            let values = std::hint::black_box(vec![[1e-3f32; LANES]; LENGTH]);
            let mut tile = [[0.0f32; LANES]; TOGETHER];
            (0..TURNS).for_each(|_| add_products(&mut tile, &factors, &values));
            tile[0][0]
        })
        .sum();
    std::hint::black_box(sums);
    (threads * TURNS * LENGTH * TOGETHER * LANES * 2) as f64 / started.elapsed().as_secs_f64() / 1e9
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run(size: usize, inputs: &[f32], weights: &[f32]) -> Seconds {
    let codec = Codec::new(Encoder::Default);
    let mut seconds = [0.0; STEPS.len()];
    let mut last = Instant::now();
    let mut lap = |step: usize| {
        seconds[step] = last.elapsed().as_secs_f64();
        last = Instant::now();
    };
    let offsets: Vec<usize> = (0..ROWS_OF_INPUT).map(|t| t * size).collect();
    let mut hessian = Hessian::new(size, Unit::of(inputs, offsets.iter().copied().take(512), size));
    for chunk in offsets.chunks(512) {
        hessian.add(inputs, chunk, None).map_or_else(|error| println!("{error:?}"), drop);
    }
    lap(0);
    let hessian = rotated(&hessian.mean(), size, &Transform::default(), codec);
    lap(1);
    let curvature = Curvature::new(&hessian, size, 0.01, true);
    lap(2);
    let mut weights = weights.to_vec();
    let mut tiles = vec![Tile::zeroed(); size / 8 * size / 256];
    weights.par_chunks_mut(8 * size).zip(tiles.par_chunks_mut(size / 256)).for_each(|(rows, tiles)| {
        codec.encode_rows(rows, size, tiles).map_or_else(|error| println!("{error:?}"), drop);
    });
    lap(3);
    let rounding = Rounding { feedback: true, descents: 2, refit: true };
    if let Some(curvature) = curvature {
        weights.par_chunks(STRIPE * size).zip(tiles.par_chunks_mut(STRIPE / 8 * size / 256)).for_each(
            |(rows, tiles)| {
                round_stripes(rows, tiles, &curvature, rounding);
            },
        );
    }
    lap(4);
    seconds
}
