//! Measures the kernels by the clock of the GPU, beside its own copy and cuBLAS in the same run. Buffers are taken in turn, as many as it takes to be
//! larger than the cache; where their number does not suffice, nothing is said of the bandwidth.
//!
//! What the kernels compute is not looked at here: `check` does that.

use bytemuck::Zeroable;
use half::f16;
use serde::Serialize;

use super::blas::{Blas, Sizes};
use super::gpu::{Buffer, Facts, Gpu, Plain, Queue};
use super::launch_calibration::{Rows, gram_len, statistics_len};
use super::oracle::{Reference, acts};
use super::shapes::{Act8, Activations, BlockG256, Int4G32, Int8, Shape, WideG256};
use crate::error::DeviceError;
use crate::tcq::{Encoder, TILE_BYTES, Tile};
use crate::util::random::{below, normal, shuffled, stream};

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// What was measured: a kernel and the kind of its data, or what it is compared with.
    pub name: String,
    /// Tokens, or rows of what has no tokens.
    pub tokens: usize,
    /// Rows of the matrix; 0 where there is none.
    pub rows: usize,
    /// Channels.
    pub k: usize,
    /// Time of one launch.
    pub microseconds: f64,
    /// Bytes that have to be moved, over the time.
    pub gigabytes_per_second: f64,
    /// That over the GPU's own copy; nothing where the buffers fit into the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_copy: Option<f64>,
    /// Multiplications and additions over the time, in 10^12; 0 where it is not about them.
    pub tera_operations_per_second: f64,
    /// Speed relative to cuBLAS on INT8 of the same shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_cublas_int8: Option<f64>,
    /// Speed relative to cuBLAS on f16 of the same shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_cublas_f16: Option<f64>,
}

/// All measurements of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The GPU.
    pub gpu: Facts,
    /// Bytes read and written a second by a copy on the GPU, in 10^9.
    pub copy_gigabytes_per_second: f64,
    /// Why there is nothing of cuBLAS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_cublas: Option<String>,
    /// The measurements.
    pub lines: Vec<Line>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// Only lines whose names contain one of these; all if there are none.
    pub wanted: &'a [String],
    /// Fewer shapes and shorter measurements.
    pub quick: bool,
}

/// What moves and what is computed in a launch.
#[derive(Debug, Clone, Copy)]
struct Work {
    tokens: usize,
    rows: usize,
    k: usize,
    bytes: usize,
    operations: f64,
}

impl Work {
    fn moving(tokens: usize, k: usize, bytes: usize) -> Self {
        Self { tokens, rows: 0, k, bytes, operations: 0.0 }
    }

    fn product(shape: Shape, bytes: usize) -> Self {
        let operations = 2.0 * shape.tokens as f64 * shape.rows as f64 * shape.k() as f64;
        Self { tokens: shape.tokens, rows: shape.rows, k: shape.k(), bytes, operations }
    }
}

/// Buffers together are this many times as large as the cache.
const TIMES_CACHE: usize = 4;
/// But not more than so many.
const MAX_SETS: usize = 64;
/// Seconds that a measurement takes, three times; and a quick one.
const SECONDS: f64 = 0.05;
const QUICK_SECONDS: f64 = 0.01;
/// Bytes that are copied to measure the bandwidth.
const COPY_BYTES: usize = 1 << 30;
/// Random values that data are made of, again and again.
const PATTERN: usize = 1 << 16;
/// Random tiles that matrices are made of.
const TILES: usize = 256;
/// What data and orders are drawn from.
const SEED: u64 = 42;

struct Bench<'a> {
    queue: &'a Queue<'a>,
    options: Options<'a>,
    copy: f64,
    lines: Vec<Line>,
    floats: Vec<f32>,
    /// Without zero points, and with them.
    tiles: [Vec<Tile>; 2],
}

/// Whether matrices have zero points, which kernels may leave out where there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Without,
    With,
}

/// Measures everything.
///
/// # Errors
/// What the compiler or the driver says.
pub fn bench(gpu: &Gpu, options: Options<'_>) -> Result<Report, DeviceError> {
    let queue = gpu.queue()?;
    let mut random = stream("kernels bench", SEED);
    let floats: Vec<f32> = (0..PATTERN).map(|_| normal(&mut random) as f32).collect();
    let mut tiles = |zero: f32| {
        let tile = |_| {
            let mut tile = Tile::zeroed();
            tile.codes.iter_mut().for_each(|byte| *byte = below(&mut random, 256) as u8);
            tile.scale = [f16::from_f32(0.01); 8];
            tile.zero = [f16::from_f32(zero); 8];
            let codes = tile.scale_code.iter_mut().chain(&mut tile.zero_code).flatten();
            codes.for_each(|code| *code = 64 + below(&mut random, 64) as i8);
            tile
        };
        (0..TILES).map(tile).collect()
    };
    let tiles = [tiles(0.0), tiles(0.01)];
    let mut bench = Bench { queue: &queue, options, copy: 0.0, lines: Vec::new(), floats, tiles };
    bench.copy = bench.copy()?;
    bench.activations()?;
    bench.few_tokens()?;
    let no_cublas = bench.many_tokens()?;
    bench.weights()?;
    bench.calibration()?;
    let copy_gigabytes_per_second = bench.copy / 1e9;
    Ok(Report { gpu: gpu.facts().clone(), copy_gigabytes_per_second, no_cublas, lines: bench.lines })
}

impl Bench<'_> {
    fn wants(&self, name: &str) -> bool {
        self.options.wanted.is_empty() || self.options.wanted.iter().any(|part| name.contains(part.as_str()))
    }

    /// The sizes of models that are measured.
    fn sizes(&self) -> &'static [usize] {
        if self.options.quick { &[4096] } else { &[4096, 8192, 14336] }
    }

    /// How many sets of buffers it takes to be larger than the cache.
    fn sets(&self, bytes: usize) -> usize {
        self.goal().div_ceil(bytes.max(1)).clamp(1, MAX_SETS)
    }

    /// Bytes that buffers have together where the cache does not help.
    fn goal(&self) -> usize {
        TIMES_CACHE * self.queue.gpu().facts().l2_bytes as usize
    }

    /// Activations of so many chunks.
    fn acts<R: Reference>(&self, len: usize) -> Vec<R::Acts> {
        acts::<R>(&self.floats).into_iter().cycle().take(len).collect()
    }

    fn values<T>(&self, len: usize, of: impl Fn(f32) -> T) -> Vec<T> {
        self.floats.iter().cycle().take(len).map(|&value| of(value)).collect()
    }

    /// As many buffers with the same values.
    fn several<T: Plain>(&self, sets: usize, values: &[T]) -> Result<Vec<Buffer<T>>, DeviceError> {
        (0..sets).map(|_| self.queue.upload(values)).collect()
    }

    fn rooms<T: Plain>(&self, sets: usize, len: usize) -> Result<Vec<Buffer<T>>, DeviceError> {
        (0..sets).map(|_| self.queue.room(len)).collect()
    }

    /// The best of three times of one launch in seconds; `launch` gets the number of the set of buffers.
    fn seconds(
        &self,
        sets: usize,
        launch: &mut dyn FnMut(usize) -> Result<(), DeviceError>,
    ) -> Result<f64, DeviceError> {
        launch(0)?; // compiles, loads and allocates what is needed
        let goal = if self.options.quick { QUICK_SECONDS } else { SECONDS };
        let mut all = || (0..sets).try_for_each(&mut *launch);
        let first = self.queue.time(1, &mut all)?;
        let rounds = (goal / first.max(1e-6)).ceil().clamp(2.0, 1000.0) as usize;
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            best = best.min(self.queue.time(rounds, &mut all)?);
        }
        Ok(best / sets as f64)
    }

    fn measure(
        &mut self,
        name: &str,
        work: Work,
        sets: usize,
        mut launch: impl FnMut(usize) -> Result<(), DeviceError>,
    ) -> Result<f64, DeviceError> {
        let seconds = self.seconds(sets, &mut launch)?;
        let speed = work.bytes as f64 / seconds;
        let Work { tokens, rows, k, .. } = work;
        tracing::info!(name, tokens, rows, k, microseconds = seconds * 1e6, "measured");
        self.lines.push(Line {
            name: name.to_owned(),
            tokens: work.tokens,
            rows: work.rows,
            k: work.k,
            microseconds: seconds * 1e6,
            gigabytes_per_second: speed / 1e9,
            of_copy: (sets * work.bytes >= self.goal()).then_some(speed / self.copy),
            tera_operations_per_second: work.operations / seconds / 1e12,
            of_cublas_int8: None,
            of_cublas_f16: None,
        });
        Ok(seconds)
    }

    /// Bytes a second that a copy reads and writes.
    fn copy(&self) -> Result<f64, DeviceError> {
        let bytes = COPY_BYTES.min(self.queue.gpu().facts().memory_bytes as usize / 8);
        let from = self.queue.room::<u8>(bytes)?;
        let mut to = self.queue.room::<u8>(bytes)?;
        let seconds = self.seconds(1, &mut |_| self.queue.copy(&from, &mut to))?;
        Ok(2.0 * bytes as f64 / seconds)
    }

    fn activations(&mut self) -> Result<(), DeviceError> {
        let has_int4 = self.queue.gpu().facts().has_int4();
        for &k in self.sizes() {
            for tokens in [1, 256, 2048] {
                self.round::<Int8>(tokens, k)?;
                self.round::<Int4G32>(tokens, k)?;
                if has_int4 { self.round::<BlockG256>(tokens, k)? } else { self.round::<WideG256>(tokens, k)? }
            }
        }
        if self.wants("tcq4_fwht_f32") {
            let (tokens, k) = (4096, 4096);
            let bytes = 2 * tokens * k * size_of::<f32>();
            let sets = self.sets(bytes);
            let mut x = self.several(sets, &vec![0.0f32; tokens * k])?;
            let queue = self.queue;
            self.measure("tcq4_fwht_f32", Work::moving(tokens, k, bytes), sets, |set| queue.fwht(&mut x[set]))?;
        }
        Ok(())
    }

    fn round<R: Reference>(&mut self, tokens: usize, k: usize) -> Result<(), DeviceError> {
        let name = format!("tcq4_round_{}_f32", R::NAME);
        if !self.wants(&name) {
            return Ok(());
        }
        let shape = Shape { rows: 0, chunks: k / 256, tokens };
        let bytes = tokens * k * size_of::<f32>() + shape.acts() * size_of::<R::Acts>();
        let sets = self.sets(bytes);
        let x = self.several(sets, &self.values(tokens * k, |value| value))?;
        let perm: Vec<i32> = shuffled(k, "kernels bench order", SEED).into_iter().map(|at| at as i32).collect();
        let perm = self.queue.upload(&perm)?;
        let mut acts = self.rooms::<R::Acts>(sets, shape.acts())?;
        let (queue, staged) = (self.queue, tokens >= 32);
        let launch = |set: usize| queue.round::<f32, R>((&x[set], Some(&perm)), &mut acts[set], shape, staged);
        self.measure(&name, Work::moving(tokens, k, bytes), sets, launch).map(drop)
    }

    /// A matrix in every set of buffers.
    fn matrices(&self, sets: usize, shape: Shape, zeros: Zeros) -> Result<Vec<Buffer<Tile>>, DeviceError> {
        let tiles = &self.tiles[usize::from(zeros == Zeros::With)];
        let tiles: Vec<Tile> = tiles.iter().cycle().take(shape.tiles()).copied().collect();
        self.several(sets, &tiles)
    }

    fn few_tokens(&mut self) -> Result<(), DeviceError> {
        for &k in self.sizes() {
            for tokens in [1, 2, 4, 8] {
                let shape = Shape { rows: k, chunks: k / 256, tokens };
                self.vec::<Int8>(shape)?;
                self.vec::<Int4G32>(shape)?;
            }
            self.fused(Shape { rows: k, chunks: k / 256, tokens: 1 })?;
        }
        // The shape that llama.cpp measures itself by.
        self.vec::<Int8>(Shape { rows: 4096, chunks: 14336 / 256, tokens: 1 })
    }

    fn vec<R: Reference>(&mut self, shape: Shape) -> Result<(), DeviceError> {
        let name = format!("tcq4_mul_vec_{}_m{}", R::Acts::SUFFIX, shape.tokens);
        if !self.wants(&name) {
            return Ok(());
        }
        let bytes = shape.tiles() * TILE_BYTES;
        let sets = self.sets(bytes);
        let tiles = self.matrices(sets, shape, Zeros::With)?;
        let acts = self.queue.upload(&self.acts::<R>(shape.acts()))?;
        let mut y = self.queue.room(shape.tokens * shape.rows)?;
        let queue = self.queue;
        let launch = |set: usize| queue.mul_vec((&tiles[set], &acts), &mut y, shape, shape.rows);
        self.measure(&name, Work::product(shape, bytes), sets, launch).map(drop)
    }

    fn fused(&mut self, shape: Shape) -> Result<(), DeviceError> {
        const NAME: &str = "tcq4_mul_vec_fused_int8_m1";
        if !self.wants(NAME) {
            return Ok(());
        }
        let bytes = shape.tiles() * TILE_BYTES;
        let sets = self.sets(bytes);
        let tiles = self.matrices(sets, shape, Zeros::With)?;
        let x = self.queue.upload(&self.values(shape.k(), |value| value))?;
        let mut y = self.queue.room(shape.rows)?;
        let queue = self.queue;
        let launch = |set: usize| queue.mul_vec_fused::<Act8>((&x, None, &tiles[set]), &mut y, shape, shape.rows);
        self.measure(NAME, Work::product(shape, bytes), sets, launch).map(drop)
    }

    /// Gives the reason if cuBLAS is missing, or from when on it did not work.
    fn many_tokens(&mut self) -> Result<Option<String>, DeviceError> {
        let queue = self.queue;
        let mut blas = Blas::open(queue, queue.gpu().setup().libraries.as_deref());
        let shapes: &[(usize, usize)] = if self.options.quick {
            &[(4096, 4096)]
        } else {
            &[(4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192)]
        };
        for &(rows, k) in shapes {
            for tokens in if self.options.quick { &[512, 4096][..] } else { &[512, 1024, 2048, 4096][..] } {
                let shape = Shape { rows, chunks: k / 256, tokens: *tokens };
                let first = self.lines.len();
                for zeros in [Zeros::Without, Zeros::With] {
                    self.mat::<Int8>(shape, zeros)?;
                    self.mat::<Int4G32>(shape, zeros)?;
                    if queue.gpu().facts().has_int4() {
                        self.mat::<BlockG256>(shape, zeros)?;
                    } else {
                        self.mat::<WideG256>(shape, zeros)?;
                    }
                }
                let refused = match &blas {
                    Ok(blas) => self.compare(blas, shape, first).err(),
                    Err(_) => None,
                };
                if let Some(error) = refused {
                    blas = Err(error);
                }
            }
        }
        Ok(blas.err().map(|error| error.to_string()))
    }

    /// Measures cuBLAS beside the lines from `first` on, if there are any.
    fn compare(&mut self, blas: &Blas<'_>, shape: Shape, first: usize) -> Result<(), DeviceError> {
        let own = first..self.lines.len();
        if own.is_empty() {
            return Ok(());
        }
        let int8 = self.blas_int8(blas, shape)?;
        let f16 = self.blas_f16(blas, shape)?;
        for line in &mut self.lines[own] {
            line.of_cublas_int8 = Some(int8 * 1e6 / line.microseconds);
            line.of_cublas_f16 = Some(f16 * 1e6 / line.microseconds);
        }
        Ok(())
    }

    fn mat<R: Reference>(&mut self, shape: Shape, zeros: Zeros) -> Result<(), DeviceError> {
        let kernel = format!("tcq4_mul_mat_{}", R::Acts::SUFFIX);
        if !self.wants(&kernel) {
            return Ok(());
        }
        let name = kernel + if zeros == Zeros::With { ", zero points" } else { "" };
        let out = shape.tokens * shape.rows;
        let bytes = shape.tiles() * TILE_BYTES + shape.acts() * size_of::<R::Acts>() + out * size_of::<f32>();
        let sets = self.sets(bytes);
        let tiles = self.matrices(sets, shape, zeros)?;
        let acts = self.several(sets, &self.acts::<R>(shape.acts()))?;
        let mut y = self.rooms(sets, out)?;
        let queue = self.queue;
        let launch = |set: usize| queue.mul_mat((&tiles[set], &acts[set]), &mut y[set], shape, shape.rows);
        self.measure(&name, Work::product(shape, bytes), sets, launch).map(drop)
    }

    fn blas_int8(&mut self, blas: &Blas<'_>, shape: Shape) -> Result<f64, DeviceError> {
        let sizes = Sizes { tokens: shape.tokens, rows: shape.rows, k: shape.k() };
        let (inner, out) = ((shape.rows + shape.tokens) * shape.k(), shape.tokens * shape.rows);
        let bytes = inner + out * size_of::<i32>();
        let sets = self.sets(bytes);
        let w = self.several(sets, &self.values(shape.rows * shape.k(), |value| (value * 40.0) as i8))?;
        let x = self.several(sets, &self.values(shape.tokens * shape.k(), |value| (value * 40.0) as i8))?;
        let mut y = self.rooms(sets, out)?;
        let launch = |set: usize| blas.i8(&w[set], &x[set], &mut y[set], sizes);
        self.measure("cuBLAS int8", Work::product(shape, bytes), sets, launch)
    }

    fn blas_f16(&mut self, blas: &Blas<'_>, shape: Shape) -> Result<f64, DeviceError> {
        let sizes = Sizes { tokens: shape.tokens, rows: shape.rows, k: shape.k() };
        let (inner, out) = ((shape.rows + shape.tokens) * shape.k(), shape.tokens * shape.rows);
        let bytes = (inner + out) * size_of::<f16>();
        let sets = self.sets(bytes);
        let w = self.several(sets, &self.values(shape.rows * shape.k(), f16::from_f32))?;
        let x = self.several(sets, &self.values(shape.tokens * shape.k(), f16::from_f32))?;
        let mut y = self.rooms(sets, out)?;
        let launch = |set: usize| blas.f16(&w[set], &x[set], &mut y[set], sizes);
        self.measure("cuBLAS f16", Work::product(shape, bytes), sets, launch)
    }

    fn weights(&mut self) -> Result<(), DeviceError> {
        let (rows, k) = (4096, 4096);
        let shape = Shape { rows, chunks: k / 256, tokens: 0 };
        let (values, tiles, queue) = (rows * k, shape.tiles(), self.queue);
        for encoder in [Encoder::Parity, Encoder::Default] {
            let name = format!("tcq4_encode_{encoder}_f16");
            if !self.wants(&name) {
                continue;
            }
            // What counts is the input: that is what the speed is to be compared with.
            let bytes = values * size_of::<f16>();
            let sets = self.sets(bytes);
            let x = self.several(sets, &self.values(values, f16::from_f32))?;
            let mut encoded = (0..sets).map(|_| queue.room_for_encoded(tiles)).collect::<Result<Vec<_>, _>>()?;
            let launch = |set: usize| queue.encode(encoder, (&x[set], None), false, &mut encoded[set], shape);
            self.measure(&name, Work::moving(rows, k, bytes), sets, launch)?;
        }
        if self.wants("tcq4_dequantize_f16") {
            let bytes = tiles * TILE_BYTES + values * size_of::<f16>();
            let sets = self.sets(bytes);
            let matrices = self.matrices(sets, shape, Zeros::With)?;
            let mut y = self.rooms::<f16>(sets, values)?;
            let launch = |set: usize| queue.dequantize((&matrices[set], None), false, &mut y[set], shape);
            self.measure("tcq4_dequantize_f16", Work::moving(rows, k, bytes), sets, launch)?;
        }
        Ok(())
    }

    fn calibration(&mut self) -> Result<(), DeviceError> {
        let rows = Rows { tokens: 4096, k: 4096 };
        let (bytes, queue) = (rows.tokens * rows.k * size_of::<f32>(), self.queue);
        let sets = self.sets(bytes);
        let names = ["tcq4_statistics", "tcq4_gram"];
        if !names.iter().any(|name| self.wants(name)) {
            return Ok(());
        }
        let x = self.several(sets, &self.values(rows.tokens * rows.k, |value| value))?;
        if self.wants(names[0]) {
            let mut sums = queue.room(statistics_len(rows))?;
            let launch = |set: usize| queue.statistics(&x[set], rows, &mut sums);
            self.measure(names[0], Work::moving(rows.tokens, rows.k, bytes), sets, launch)?;
        }
        if self.wants(names[1]) {
            let mut gram = queue.room(gram_len(rows.k))?;
            let shape = Shape { rows: rows.k, chunks: rows.k / 256, tokens: rows.tokens };
            // Only half of it is computed.
            let work = Work { operations: Work::product(shape, 0).operations / 2.0, ..Work::product(shape, bytes) };
            self.measure(names[1], work, sets, |set| queue.gram(&x[set], rows, &mut gram))?;
        }
        Ok(())
    }
}
