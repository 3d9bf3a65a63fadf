#![doc = include_str!("../README.md")]
//
// Modules are listed in floor order: a module uses only modules above it in this list, never its siblings or those below
// (`tests/it/layering.rs` checks it).

// floor 0
pub mod error;
pub mod util; // may use error
// floor 1
pub mod math;
// floor 2
pub mod tcq;
// floor 3
pub mod device;
pub mod gguf;
pub mod llama;
// floor 4
pub mod model;
// floor 5
pub mod corpus;
// floor 6
pub mod calib;
// floor 7
pub mod quant;
// floor 8
pub mod convert;
pub mod eval;
pub mod inspect;
// floor 9
pub mod analysis;
// floor 10
pub mod report;
// floor 11
pub mod pipeline;
// floor 12
pub mod cli;

pub use error::{Class, Error, Result};
