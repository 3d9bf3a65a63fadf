//! Integration tests: one binary, one module a subject.
mod quant;
mod tiny_forward;
