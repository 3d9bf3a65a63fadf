//! What the encoders lose on weights of known distributions: the squared error relative to the weights, in the rotated domain.
//!
//! `cargo bench --bench encoders`. The values are independent, of mean 0 and variance 1; groups of real weights look normal after the
//! rotation, so that the first line is the one that matters most.
#![expect(clippy::print_stdout, reason = "a table is what this program is for")]

use bytemuck::Zeroable;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tcq4::tcq::{CHUNK, Codec, EncodeError, Encoder, Loss, TILE_ROWS, Tile};

const COLUMNS: usize = 3072;
const TILE_ROW_COUNT: usize = 32;

fn normal(random: &mut ChaCha8Rng) -> f32 {
    let (radius, angle): (f64, f64) = (1.0 - random.random::<f64>(), random.random());
    ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
}

fn laplace(random: &mut ChaCha8Rng) -> f32 {
    let uniform = random.random::<f32>() - 0.5;
    -uniform.signum() * (1.0 - 2.0 * uniform.abs()).max(f32::MIN_POSITIVE).ln() * std::f32::consts::FRAC_1_SQRT_2
}

/// Student's t with five degrees of freedom, scaled to variance 1.
fn student(random: &mut ChaCha8Rng) -> f32 {
    let chi_sq: f32 = (0..5).map(|_| normal(random).powi(2)).sum();
    normal(random) * (3.0 / chi_sq).sqrt()
}

fn uniform(random: &mut ChaCha8Rng) -> f32 {
    (random.random::<f32>() - 0.5) * 12.0f32.sqrt()
}

fn loss(encoder: Encoder, rows: &[f32]) -> Result<Loss, EncodeError> {
    let codec = Codec::new(encoder);
    let mut tiles = vec![Tile::zeroed(); COLUMNS / CHUNK];
    rows.chunks_exact(TILE_ROWS * COLUMNS).map(|rows| codec.encode_rotated(rows, COLUMNS, &mut tiles)).sum()
}

/// A distribution and its name.
type Source = (&'static str, fn(&mut ChaCha8Rng) -> f32);

fn main() -> Result<(), EncodeError> {
    let sources: [Source; 4] =
        [("normal", normal), ("laplace", laplace), ("student t5", student), ("uniform", uniform)];
    println!("| weights | parity | default | ratio |\n| --- | --- | --- | --- |");
    for (name, source) in sources {
        let mut random = ChaCha8Rng::seed_from_u64(127);
        let rows: Vec<f32> = (0..TILE_ROW_COUNT * TILE_ROWS * COLUMNS).map(|_| source(&mut random)).collect();
        let (parity, default) = (loss(Encoder::Parity, &rows)?.relative(), loss(Encoder::Default, &rows)?.relative());
        println!("| {name} | {parity:.6} | {default:.6} | {:.3} |", default / parity);
    }
    Ok(())
}
