//! What lies in the memory of a GPU: rounded activations as the kernels lay them out, and the shapes that launches take.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::gpu::Plain;
use crate::tcq::{CHUNK, GROUPS, TILE_ROWS};

/// Floats that kernels read and write.
pub trait Value: Plain {
    /// What the names of its kernels end in.
    const SUFFIX: &'static str;
}

impl Value for f32 {
    const SUFFIX: &'static str = "f32";
}

impl Value for f16 {
    const SUFFIX: &'static str = "f16";
}

/// 256 rounded channels of a token.
pub trait Activations: Plain {
    /// What the names of its multiplications end in.
    const SUFFIX: &'static str;
    /// Dynamic shared memory of its multiplication on tensor cores, in bytes: on compute capability 7.5, and on later ones. `tcq4_gemm_stage.cuh`
    /// asserts the same numbers.
    const MUL_MAT_SHARED: [u32; 2];
}

/// INT8 codes, the even and the odd ones of eight in separate words; scale, and scale times sum, of 32.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Act8 {
    /// Words `8 g + 2 p` and `8 g + 2 p + 1` have the even and the odd elements of 8 p .. 8 p + 7 of group g.
    pub codes: [i8; CHUNK],
    /// What a code of a group is multiplied with.
    pub scale: [f32; GROUPS],
    /// The scale times the sum of the group's codes.
    pub sum: [f32; GROUPS],
}

/// INT4 codes in order, the first in the low nibble; scale, and scale times sum, of 32.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Act4 {
    /// Two codes a byte.
    pub codes: [u8; CHUNK / 2],
    /// What a code of a group is multiplied with.
    pub scale: [f32; GROUPS],
    /// The scale times the sum of the group's codes.
    pub sum: [f32; GROUPS],
}

/// INT4 codes in order with one scale for all 256, and the sums of the codes of 32.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Block4 {
    /// Two codes a byte.
    pub codes: [u8; CHUNK / 2],
    /// What a code is multiplied with.
    pub scale: f32,
    /// The sum of the codes of a group.
    pub sums: [i16; GROUPS],
    /// Zero.
    pub rest: [u32; 3],
}

/// [`Block4`] with a byte for each code, in the places of [`Act8`].
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Block8 {
    /// A code a byte, as in [`Act8`].
    pub codes: [i8; CHUNK],
    /// What a code is multiplied with.
    pub scale: f32,
    /// The sum of the codes of a group.
    pub sums: [i16; GROUPS],
    /// Zero.
    pub rest: [u32; 3],
}

const _: () = assert!(size_of::<Act8>() == 320 && size_of::<Act4>() == 192);
const _: () = assert!(size_of::<Block4>() == 160 && size_of::<Block8>() == 288);

macro_rules! activations {
    ($($type:ty: $suffix:literal, $shared:expr;)*) => {$(
        impl Activations for $type {
            const SUFFIX: &'static str = $suffix;
            const MUL_MAT_SHARED: [u32; 2] = $shared;
        }
    )*};
}

activations! {
    Act8: "int8", [45_568, 80_896];
    Act4: "int4", [35_328, 60_416];
    Block4: "block4", [25_088, 50_176];
    Block8: "block8", [35_328, 70_656];
}

/// The rows and chunks of a matrix, and the tokens it is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows, a multiple of 8.
    pub rows: usize,
    /// Columns over 256.
    pub chunks: usize,
    /// Tokens.
    pub tokens: usize,
}

impl Shape {
    /// Columns.
    pub fn k(self) -> usize {
        self.chunks * CHUNK
    }

    /// Tiles of the matrix.
    pub fn tiles(self) -> usize {
        self.rows / TILE_ROWS * self.chunks
    }

    /// Activation blocks of all tokens.
    pub fn acts(self) -> usize {
        self.tokens * self.chunks
    }
}

/// A way to round activations.
pub trait Rule {
    /// How they lie afterwards.
    type Acts: Activations;
    /// The middle of the names of its kernels.
    const NAME: &'static str;
}

macro_rules! rules {
    ($($(#[$about:meta])* $rule:ident: $name:literal -> $acts:ty;)*) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Copy)]
        pub struct $rule;

        impl Rule for $rule {
            type Acts = $acts;
            const NAME: &'static str = $name;
        }
    )*};
}

rules! {
    /// INT8, one scale max/127 for 32.
    Int8: "int8" -> Act8;
    /// INT4, one signed scale for 32, the extreme value at -8.
    Int4G32: "int4_g32" -> Act4;
    /// INT4, one signed scale for 256, times 0.9.
    Int4G256: "int4_g256" -> Act4;
    /// INT4, one scale max/7 for 256.
    Int4Fork: "int4_fork" -> Act4;
    /// [`Int4G256`] in blocks.
    BlockG256: "block_g256" -> Block4;
    /// [`Int4Fork`] in blocks.
    BlockFork: "block_fork" -> Block4;
    /// [`Int4G256`] in blocks of bytes.
    WideG256: "wide_g256" -> Block8;
    /// [`Int4Fork`] in blocks of bytes.
    WideFork: "wide_fork" -> Block8;
}
