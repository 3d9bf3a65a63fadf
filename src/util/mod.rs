//! Small helpers without knowledge of models: progress reporting, units, hashes, named random streams, interruption.

pub mod hash;
pub mod progress;
