//! TCQ4_K32: the bytes of a tile, and the codec between rows of f32 weights and tiles.
//!
//! A weight row is cut into chunks of 256, each rotated by a Hadamard transform; groups of 32 rotated values share a scale and a zero point.
//! Files, tensors and threads are unknown here.

#[expect(
    clippy::inline_always,
    reason = "kernels must be compiled into the function that enables their instruction set"
)]
mod arch;
mod block;
#[expect(
    clippy::inline_always,
    reason = "kernels must be compiled into the function that enables their instruction set"
)]
mod codec;
pub mod early;
mod isa;
#[expect(
    clippy::inline_always,
    reason = "kernels must be compiled into the function that enables their instruction set"
)]
mod kernel;
mod layout;
#[cfg(test)]
mod tests;

pub use block::{
    CHUNK, CODE_SCALE, EarlyBlock, FORK_FTYPE_ID, FORK_GGML_TYPE_ID, FTYPE_ID, GGML_TYPE_ID, GROUP, GROUPS, ROW_BYTES,
    TILE_BYTES, TILE_ROWS, Tile, TileDefect, validate_tile,
};
pub use codec::{Codec, EncodeError, Encoder, Loss};
pub use isa::{Isa, UnknownName};
pub use layout::{Layout, detect_layout};
