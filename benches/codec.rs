//! The codec on one core, by instruction set, in bytes of f32 weights a second; a memcpy of the same weights is the bound of them all.
//!
//! `cargo bench --bench codec -- default` picks one; the weights are eight rows of 4096, so that cache and not memory is measured.

use std::hint::black_box;

use bytemuck::Zeroable;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tcq4::tcq::{CHUNK, Codec, Encoder, Isa, TILE_ROWS, Tile};

const COLUMNS: usize = 4096;

/// Sums of twelve uniform values: as good as normal for this.
fn weights() -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(256);
    (0..TILE_ROWS * COLUMNS).map(|_| (0..12).map(|_| random.random::<f32>() - 0.5).sum()).collect()
}

fn codecs(encoder: Encoder) -> Vec<Codec> {
    Isa::available().into_iter().filter_map(|isa| Codec::with_isa(encoder, isa)).collect()
}

fn codec(criterion: &mut Criterion) {
    let weights = weights();
    let mut rows = weights.clone();
    let mut tiles = vec![Tile::zeroed(); COLUMNS / CHUNK];
    let throughput = Throughput::Bytes(size_of_val(weights.as_slice()) as u64);

    let mut group = criterion.benchmark_group("memcpy");
    group.throughput(throughput.clone());
    group.bench_function("bound", |bencher| bencher.iter(|| black_box(&mut rows).copy_from_slice(black_box(&weights))));
    group.finish();

    let mut group = criterion.benchmark_group("fwht");
    group.throughput(throughput.clone());
    for codec in codecs(Encoder::Default) {
        group.bench_function(codec.isa().to_string(), |bencher| bencher.iter(|| codec.fwht(black_box(&mut rows))));
    }
    group.finish();

    for encoder in [Encoder::Parity, Encoder::Default] {
        let mut group = criterion.benchmark_group(format!("encode/{encoder}"));
        group.throughput(throughput.clone());
        for codec in codecs(encoder) {
            group.bench_function(codec.isa().to_string(), |bencher| {
                bencher.iter(|| {
                    rows.copy_from_slice(&weights);
                    codec.encode_rows(black_box(&mut rows), COLUMNS, &mut tiles)
                });
            });
        }
        group.finish();
    }

    let mut group = criterion.benchmark_group("decode");
    group.throughput(throughput);
    for codec in codecs(Encoder::Default) {
        group.bench_function(codec.isa().to_string(), |bencher| {
            bencher.iter(|| codec.decode_rows(black_box(&tiles), COLUMNS, &mut rows));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).warm_up_time(std::time::Duration::from_millis(300)).measurement_time(std::time::Duration::from_secs(1));
    targets = codec
}
criterion_main!(benches);
