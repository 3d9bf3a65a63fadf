//! Integration tests: one binary, one module a subject.
#![allow(unreachable_pub, reason = "`pub` marks what the modules of the tests share")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod gguf;
mod gguf_hostile;
mod gguf_mutants;
mod golden;
mod layering;
mod model;
mod prepare;
mod quant;
mod safety;
mod support;
mod tiny_forward;
