//! Integration tests: one binary, one module a subject.
#![allow(unreachable_pub, reason = "`pub` marks what the modules of the tests share")]

mod gguf;
mod gguf_hostile;
mod gguf_mutants;
mod layering;
mod safety;
mod support;
