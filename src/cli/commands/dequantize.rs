//! `tcq4 dequantize`: TCQ4 back to plain floats.

use serde::Serialize;

use crate::cli::args::DequantizeArgs;
use crate::cli::device::DeviceUse;
use crate::cli::{Outcome, Session};
use crate::convert::{Dequantized, dequantize};
use crate::device::TileDecoder;
use crate::gguf::Source;
use crate::tcq::Encoder;
use crate::util::units::Bytes;

#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    done: &'a Dequantized,
    /// What decoded the tiles.
    device: &'a DeviceUse,
}

pub(in crate::cli) fn run(session: &Session, args: &DequantizeArgs) -> Outcome {
    let file = Source::open(&args.model)?;
    let codec = session.codec(Encoder::Default)?;
    let ty = args.float_type.into();
    let device = session.device(&args.device)?;
    let decoder = device.gpu.as_deref().map(TileDecoder::new).transpose()?;
    let by = (codec, decoder.as_ref().map(|decoder| decoder as _));
    let done = dequantize(&file, &args.output, ty, args.force, by, &session.progress)?;
    session.printer.text(&format!(
        "{}: {} tensors decoded to {ty}, {}",
        done.output.display(),
        done.tensors,
        Bytes(done.bytes)
    ));
    session.printer.record("dequantize", Record { done: &done, device: &device.use_ });
    Ok(0)
}
