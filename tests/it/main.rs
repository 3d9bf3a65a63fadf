//! Integration tests: one binary, one module a subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod model;
mod prepare;
mod quant;
mod tiny_forward;
