//! What quantisation does to a model, layer by layer: measured on calibration statistics, weights and, where given, the converted file.
//! Numbers only; how they are shown is decided elsewhere.

pub mod alpha;
mod analyze;
mod choice;
pub mod describe;
pub mod experts;
pub mod gates;
pub mod importance;
mod layers;
mod preactivations;
pub mod record;
pub mod rounding;
mod rows;
pub mod saliency;
pub mod sample;
pub mod similarity;
pub mod split;
pub mod steps;
mod subject;
mod unmeasured;

pub use analyze::{Options, analyze};
pub use choice::Choice;
pub use record::Analysis;
pub use subject::Job;
