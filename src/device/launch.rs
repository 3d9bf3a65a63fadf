//! Typed launches, one for each kernel: shapes are checked here, so that no kernel reads or writes beyond what it is given.
//!
//! Shapes: matrices of tiles `[rows/8][chunks]`, activations `[tokens][chunks]`, `k = 256 * chunks`. A launch only puts work into the queue.

use std::ffi::c_void;

use cudarc::driver::{DevicePtr, result};

use super::gpu::{Buffer, Function, Queue, refused};
use super::kernels::find;
use super::shapes::{Activations, Rule, Shape, Value};
use crate::error::DeviceError;
use crate::tcq::{CHUNK, Encoder, TILE_ROWS, Tile};

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    Pointer(u64),
    I32(i32),
    I64(i64),
}

/// How many blocks of how many threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: (usize, usize, usize),
    pub(super) threads: u32,
    pub(super) shared: u32,
}

impl Grid {
    pub(super) fn line(blocks: usize, threads: u32) -> Self {
        Self { blocks: (blocks, 1, 1), threads, shared: 0 }
    }

    /// More than any GPU has, where the number is too large for it.
    pub(super) fn with_shared(self, shared: usize) -> Self {
        Self { shared: u32::try_from(shared).unwrap_or(u32::MAX), ..self }
    }

    /// Its blocks as the driver takes them. Panics where there are more than a grid may have.
    #[track_caller]
    fn of(self, name: &str) -> (u32, u32, u32) {
        let (x, y, z) = self.blocks;
        assert!(
            x <= MOST_BLOCKS.0 && y <= MOST_BLOCKS.1 && z <= MOST_BLOCKS.1,
            "{name}: a grid of {x} x {y} x {z} blocks"
        );
        (x as u32, y as u32, z as u32)
    }
}

/// Blocks that a grid may have in its first dimension, and in each of the others.
const MOST_BLOCKS: (usize, usize) = (i32::MAX as usize, 65_535);

/// Rounded up.
pub(super) fn parts(of: usize, size: usize) -> usize {
    of.div_ceil(size)
}

#[track_caller]
pub(super) fn int(value: usize) -> Argument {
    assert!(i32::try_from(value).is_ok(), "{value}, which is no 32-bit number");
    Argument::I32(value as i32)
}

pub(super) fn long(value: usize) -> Argument {
    Argument::I64(value as i64)
}

#[track_caller]
pub(super) fn holds<T>(what: &str, buffer: &Buffer<T>, values: usize) {
    assert!(buffer.len() >= values, "{what} has {} values, {values} are needed", buffer.len());
}

/// The tokens that one pass of `mul_vec` serves at least.
fn served(tokens: usize) -> usize {
    assert!((1..=8).contains(&tokens), "1 to 8 tokens can be multiplied at once, not {tokens}");
    tokens.next_power_of_two()
}

#[track_caller]
fn check_product(tiles: &Buffer<Tile>, y: &Buffer<f32>, shape: Shape, stride: usize) {
    assert!(stride >= shape.rows && shape.rows.is_multiple_of(TILE_ROWS), "{shape:?} with a stride of {stride}");
    holds("tiles", tiles, shape.tiles());
    holds("y", y, if shape.tokens == 0 { 0 } else { (shape.tokens - 1) * stride + shape.rows });
}

/// Tokens and rows that a block of the multiplications on tensor cores makes.
const MAT_TOKENS: usize = 128;
const MAT_ROWS: usize = 128;

/// Products in the order of their experts.
#[derive(Debug)]
pub struct Sorted {
    /// Where the products of each expert begin, and where the last ones end.
    pub bounds: Buffer<i32>,
    /// The token of each product.
    pub sources: Buffer<i32>,
    /// The row of the result of each product.
    pub targets: Buffer<i32>,
}

/// What encoding gives.
#[derive(Debug)]
pub struct Encoded {
    /// The matrix.
    pub tiles: Buffer<Tile>,
    /// Of each tile, the squared errors of its 8 rows, then their sums of squares.
    pub losses: Buffer<[f32; 2 * TILE_ROWS]>,
    /// Of each tile, 0, or 1 where a value is not finite, or 2 where one is too large.
    pub defects: Buffer<i32>,
}

impl Queue<'_> {
    pub(super) fn at<T>(&self, buffer: &Buffer<T>) -> Argument {
        self.own(buffer);
        // Event tracking is off, so what is returned beside the pointer does nothing when it goes.
        Argument::Pointer(buffer.slice().device_ptr(self.stream()).0)
    }

    pub(super) fn maybe<T>(&self, buffer: Option<&Buffer<T>>) -> Argument {
        buffer.map_or(Argument::Pointer(0), |buffer| self.at(buffer))
    }

    /// Puts a kernel into the queue; nothing if its grid is empty.
    ///
    /// # Safety
    /// The parameters are those of the kernel, and the buffers hold what it reads and writes.
    pub(super) unsafe fn launch(&self, name: &str, grid: Grid, arguments: &[Argument]) -> Result<(), DeviceError> {
        let kernel = find(name)?;
        let blocks = grid.of(name);
        if blocks.0 == 0 || blocks.1 == 0 || blocks.2 == 0 {
            return Ok(());
        }
        let function = self.gpu().function(kernel)?.function;
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::I32(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::I64(value) => std::ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        let (threads, stream) = ((grid.threads, 1, 1), self.stream().cu_stream());
        self.bind()?;
        // SAFETY: as the caller promises; the driver copies the parameters before it returns.
        let launched = unsafe {
            result::launch_kernel(function.cu_function(), blocks, threads, grid.shared, stream, &mut pointers)
        };
        launched.map_err(refused(format!("run {name}")))
    }

    /// Refuses rows of `k` channels whose kernel wants more shared memory than this GPU has for it.
    fn check_width(&self, name: &str, grid: Grid, k: usize) -> Result<(), DeviceError> {
        let Function { most_shared, .. } = self.gpu().function(find(name)?)?;
        if grid.shared <= most_shared {
            return Ok(());
        }
        Err(DeviceError::TooWide { kernel: name.into(), k, needed: grid.shared, most: most_shared })
    }

    /// Transforms every 256 values in place.
    ///
    /// # Errors
    /// What the compiler or the driver says; so do all others.
    pub fn fwht<V: Value>(&self, x: &mut Buffer<V>) -> Result<(), DeviceError> {
        let chunks = x.len() / CHUNK;
        let arguments = [self.at(x), long(chunks)];
        // SAFETY: whole chunks of the buffer.
        unsafe { self.launch(&format!("tcq4_fwht_{}", V::SUFFIX), Grid::line(parts(chunks, 8), 256), &arguments) }
    }

    /// Puts channels into another order: `y[token][i] = x[token][perm[i]]`. `staged` goes through shared memory.
    pub fn gather<V: Value>(
        &self,
        (x, perm): (&Buffer<V>, &Buffer<i32>),
        y: &mut Buffer<V>,
        shape: Shape,
        staged: bool,
    ) -> Result<(), DeviceError> {
        let k = shape.k();
        holds("x", x, shape.tokens * k);
        holds("y", y, shape.tokens * k);
        holds("perm", perm, k);
        let blocks = if staged { shape.tokens } else { parts(shape.tokens * k, 2048) };
        let grid = Grid::line(blocks, 256).with_shared(if staged { k * size_of::<V>() } else { 0 });
        let arguments = [self.at(x), self.at(perm), self.at(y), long(shape.tokens), int(k), int(staged.into())];
        let name = format!("tcq4_gather_{}", V::SUFFIX);
        self.check_width(&name, grid, k)?;
        // SAFETY: lengths as checked; a permutation stays below k, as whoever made it sees to.
        unsafe { self.launch(&name, grid, &arguments) }
    }

    /// Gathers, transforms and rounds activations.
    pub fn round<V: Value, R: Rule>(
        &self,
        (x, perm): (&Buffer<V>, Option<&Buffer<i32>>),
        acts: &mut Buffer<R::Acts>,
        shape: Shape,
        staged: bool,
    ) -> Result<(), DeviceError> {
        holds("x", x, shape.tokens * shape.k());
        holds("acts", acts, shape.acts());
        perm.inspect(|perm| holds("perm", perm, shape.k()));
        let blocks = if staged { shape.tokens } else { parts(shape.acts(), 8) };
        let grid = Grid::line(blocks, 256).with_shared(if staged { shape.k() * size_of::<V>() } else { 0 });
        let (x, perm, acts) = (self.at(x), self.maybe(perm), self.at(acts));
        let arguments = [x, perm, acts, long(shape.tokens), int(shape.chunks), int(staged.into())];
        let name = format!("tcq4_round_{}_{}", R::NAME, V::SUFFIX);
        self.check_width(&name, grid, shape.k())?;
        // SAFETY: as above.
        unsafe { self.launch(&name, grid, &arguments) }
    }

    /// Multiplies 1 to 8 tokens with a matrix; row `m` of `y` begins at `m * stride`.
    ///
    /// # Panics
    /// For more than 8 tokens or a stride below the rows; as everywhere, for buffers that are too short.
    pub fn mul_vec<A: Activations>(
        &self,
        (tiles, acts): (&Buffer<Tile>, &Buffer<A>),
        y: &mut Buffer<f32>,
        shape: Shape,
        stride: usize,
    ) -> Result<(), DeviceError> {
        check_product(tiles, y, shape, stride);
        holds("acts", acts, shape.acts());
        let arguments = [self.at(tiles), self.at(acts), self.at(y), int(shape.chunks), int(shape.tokens), long(stride)];
        let name = format!("tcq4_mul_vec_{}_m{}", A::SUFFIX, served(shape.tokens));
        // SAFETY: as checked; the kernel serves at least as many tokens.
        unsafe { self.launch(&name, Grid::line(shape.rows / TILE_ROWS, 128), &arguments) }
    }

    /// Multiplies token `i / used` with the matrix of expert `ids[i]`, for every `i`. `shape` is that of one expert; its tokens are those of `acts`.
    pub fn mul_vec_id<A: Activations>(
        &self,
        (tiles, acts, ids): (&Buffer<Tile>, &Buffer<A>, &Buffer<i32>),
        y: &mut Buffer<f32>,
        (shape, used): (Shape, usize),
        stride: usize,
    ) -> Result<(), DeviceError> {
        let products = ids.len();
        check_product(tiles, y, Shape { tokens: products, ..shape }, stride);
        holds("acts", acts, parts(products, used) * shape.chunks);
        let (tiles, acts, ids, y) = (self.at(tiles), self.at(acts), self.at(ids), self.at(y));
        let arguments = [tiles, acts, ids, y, int(shape.chunks), long(shape.tiles()), int(used), long(stride)];
        let grid = Grid { blocks: (products, shape.rows / TILE_ROWS, 1), threads: 128, shared: 0 };
        // SAFETY: as checked; expert numbers stay below the number of matrices, as whoever made them sees to.
        unsafe { self.launch(&format!("tcq4_mul_vec_id_{}", A::SUFFIX), grid, &arguments) }
    }

    /// Rounds 1 to 8 tokens and multiplies them. `A` is [`super::shapes::Act8`] or [`super::shapes::Act4`] (a scale for 32).
    pub fn mul_vec_fused<A: Activations>(
        &self,
        (x, perm, tiles): (&Buffer<f32>, Option<&Buffer<i32>>, &Buffer<Tile>),
        y: &mut Buffer<f32>,
        shape: Shape,
        stride: usize,
    ) -> Result<(), DeviceError> {
        check_product(tiles, y, shape, stride);
        holds("x", x, shape.tokens * shape.k());
        perm.inspect(|perm| holds("perm", perm, shape.k()));
        let served = served(shape.tokens);
        let blocks = (shape.rows / TILE_ROWS).min(self.gpu().facts().multiprocessors as usize);
        let grid = Grid::line(blocks, 512).with_shared(served * shape.chunks * size_of::<A>());
        let (x, perm, tiles, y) = (self.at(x), self.maybe(perm), self.at(tiles), self.at(y));
        let arguments = [x, perm, tiles, y, int(shape.rows), int(shape.chunks), int(shape.tokens), long(stride)];
        let name = format!("tcq4_mul_vec_fused_{}_m{served}", A::SUFFIX);
        self.check_width(&name, grid, shape.k())?;
        // SAFETY: as checked.
        unsafe { self.launch(&name, grid, &arguments) }
    }

    /// Multiplies many tokens with a matrix.
    pub fn mul_mat<A: Activations>(
        &self,
        (tiles, acts): (&Buffer<Tile>, &Buffer<A>),
        y: &mut Buffer<f32>,
        shape: Shape,
        stride: usize,
    ) -> Result<(), DeviceError> {
        check_product(tiles, y, shape, stride);
        holds("acts", acts, shape.acts());
        let grid = self.mul_mat_grid::<A>((parts(shape.tokens, MAT_TOKENS), parts(shape.rows, MAT_ROWS), 1));
        let (tiles, acts, y) = (self.at(tiles), self.at(acts), self.at(y));
        let arguments = [tiles, acts, y, int(shape.rows), int(shape.chunks), int(shape.tokens), long(stride)];
        // SAFETY: as checked.
        unsafe { self.launch(&format!("tcq4_mul_mat_{}", A::SUFFIX), grid, &arguments) }
    }

    /// Multiplies tokens with the matrices of their experts, as [`Queue::sort_experts`] has sorted them. At most `most` products are of one expert.
    pub fn mul_mat_id<A: Activations>(
        &self,
        (tiles, acts): (&Buffer<Tile>, &Buffer<A>),
        sorted: &Sorted,
        y: &mut Buffer<f32>,
        (shape, most): (Shape, usize),
        stride: usize,
    ) -> Result<(), DeviceError> {
        let experts = sorted.bounds.len() - 1;
        check_product(tiles, y, Shape { tokens: sorted.targets.len(), ..shape }, stride);
        holds("tiles", tiles, experts * shape.tiles());
        holds("sources", &sorted.sources, sorted.targets.len());
        holds("acts", acts, shape.acts());
        let grid = self.mul_mat_grid::<A>((parts(most, MAT_TOKENS), parts(shape.rows, MAT_ROWS), experts));
        let (bounds, sources, targets) = (self.at(&sorted.bounds), self.at(&sorted.sources), self.at(&sorted.targets));
        let (tiles, acts, y) = (self.at(tiles), self.at(acts), self.at(y));
        let sizes = [int(shape.rows), int(shape.chunks), long(shape.tiles()), long(stride)];
        let arguments = [&[tiles, acts, bounds, sources, targets, y][..], &sizes].concat();
        // SAFETY: as checked; sources stay below the tokens, targets below the products.
        unsafe { self.launch(&format!("tcq4_mul_mat_id_{}", A::SUFFIX), grid, &arguments) }
    }

    fn mul_mat_grid<A: Activations>(&self, blocks: (usize, usize, usize)) -> Grid {
        let is_later = self.gpu().facts().architecture >= 80;
        Grid { blocks, threads: 256, shared: A::MUL_MAT_SHARED[usize::from(is_later)] }
    }

    /// Sorts products by expert: product `i` is of expert `ids[i]` and takes token `i / used`.
    pub fn sort_experts(&self, ids: &Buffer<i32>, used: usize, sorted: &mut Sorted) -> Result<(), DeviceError> {
        let experts = sorted.bounds.len() - 1;
        holds("sources", &sorted.sources, ids.len());
        holds("targets", &sorted.targets, ids.len());
        let outputs = [self.at(&sorted.bounds), self.at(&sorted.sources), self.at(&sorted.targets)];
        let arguments = [&[self.at(ids), int(ids.len()), int(used), int(experts)][..], &outputs].concat();
        // SAFETY: as checked.
        unsafe { self.launch("tcq4_sort_experts", Grid::line(experts, 256), &arguments) }
    }

    /// Decodes a matrix. With `perm`, stored column `i` becomes column `perm[i]`; `rotated` leaves the transform in.
    pub fn dequantize<V: Value>(
        &self,
        (tiles, perm): (&Buffer<Tile>, Option<&Buffer<i32>>),
        rotated: bool,
        y: &mut Buffer<V>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        holds("tiles", tiles, shape.tiles());
        holds("y", y, shape.rows * shape.k());
        perm.inspect(|perm| holds("perm", perm, shape.k()));
        let arguments = [self.at(tiles), self.maybe(perm), int(rotated.into()), self.at(y), int(shape.chunks)];
        let name = format!("tcq4_dequantize_{}", V::SUFFIX);
        // SAFETY: as checked.
        unsafe { self.launch(&name, Grid::line(shape.tiles(), 256), &arguments) }
    }

    /// Room for what encoding gives of so many tiles.
    pub fn room_for_encoded(&self, tiles: usize) -> Result<Encoded, DeviceError> {
        Ok(Encoded { tiles: self.room(tiles)?, losses: self.room(tiles)?, defects: self.room(tiles)? })
    }

    /// Encodes a matrix.
    pub fn encode<V: Value>(
        &self,
        encoder: Encoder,
        (x, perm): (&Buffer<V>, Option<&Buffer<i32>>),
        rotated: bool,
        encoded: &mut Encoded,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        holds("x", x, shape.rows * shape.k());
        holds("tiles", &encoded.tiles, shape.tiles());
        holds("losses", &encoded.losses, shape.tiles());
        holds("defects", &encoded.defects, shape.tiles());
        perm.inspect(|perm| holds("perm", perm, shape.k()));
        let outputs = [self.at(&encoded.tiles), self.at(&encoded.losses), self.at(&encoded.defects)];
        let inputs = [self.at(x), self.maybe(perm), int(rotated.into()), int(shape.chunks)];
        let name = format!("tcq4_encode_{encoder}_{}", V::SUFFIX);
        // SAFETY: as checked.
        unsafe { self.launch(&name, Grid::line(shape.tiles(), 64), &[&inputs[..], &outputs].concat()) }
    }
}
