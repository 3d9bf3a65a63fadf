//! What quantisation does to a model, layer by layer: measured on calibration statistics, weights and, where given, the converted file.
//! Numbers only; how they are shown is decided elsewhere.

pub mod record;

pub use record::Analysis;
