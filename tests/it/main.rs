//! Integration tests: one binary, one module a subject.
#![allow(unreachable_pub, reason = "`pub` marks what the modules of the tests share")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod analysis;
#[cfg(feature = "llama")]
mod batch;
#[cfg(all(feature = "hub", feature = "download"))]
mod batch_hub;
mod browser;
mod calib;
mod calibration_ops;
#[cfg(feature = "llama")]
mod cli;
mod cli_analyze;
#[cfg(feature = "llama")]
mod cli_calibration;
#[cfg(feature = "llama")]
mod cli_compare;
mod cli_errors;
mod cli_export;
#[cfg(feature = "llama")]
mod cli_mixed;
mod cli_outputs;
#[cfg(feature = "llama")]
mod cli_recipe;
#[cfg(feature = "llama")]
mod cli_rounding;
mod convert;
#[cfg(feature = "llama")]
mod corpus;
#[cfg(feature = "download")]
mod corpus_http;
mod determinism;
mod device;
mod device_code;
#[cfg(feature = "llama")]
mod device_runs;
#[cfg(feature = "llama")]
mod eval;
mod gguf;
mod gguf_hostile;
mod gguf_mutants;
mod golden;
mod ids;
mod layering;
#[cfg(feature = "llama")]
mod llama;
mod mixed;
mod model;
mod moments;
#[cfg(feature = "llama")]
mod moments_runs;
mod parts;
#[cfg(feature = "llama")]
mod patches;
mod prepare;
mod quant;
mod report;
#[cfg(feature = "llama")]
mod rewrite;
mod rounding;
mod safety;
mod salience;
#[cfg(feature = "llama")]
mod sequential;
#[cfg(feature = "llama")]
mod shards;
mod support;
mod tiny_forward;
