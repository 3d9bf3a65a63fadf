//! Every raw call into llama.cpp and every `unsafe` of this floor. Nothing here decides anything: it checks what C would not and
//! hands plain values to the safe modules beside it.

mod hook;
mod log;
mod node;
mod runtime;
mod types;
mod walk;
mod weights;

pub(super) use runtime::{RawContext, RawModel, ToTheEnd};
pub(super) use types::{dequantize, knows_tcq4, quantize, system_info, version};
