//! Named random streams: one seed of the user, one name for each use, so that no two uses run in step. The generator is ChaCha8 and the methods
//! are written out, so that no version of a library changes what a seed means.

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

/// The stream `name` of `seed`.
pub(super) fn stream(name: &str, seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), seed))
}

/// A number below `n`.
pub(super) fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// 0..n in random order (Fisher-Yates from the front).
pub(super) fn shuffled(n: usize, name: &str, seed: u64) -> Vec<usize> {
    let mut rng = stream(name, seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n {
        let pick = i + below(&mut rng, n - i);
        order.swap(i, pick);
    }
    order
}
