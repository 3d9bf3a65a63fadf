//! `tcq4 dequantize`: TCQ4 back to plain floats.

use crate::cli::args::DequantizeArgs;
use crate::cli::{Outcome, Session};
use crate::convert::dequantize;
use crate::gguf::Source;
use crate::tcq::Encoder;
use crate::util::units::Bytes;

pub(in crate::cli) fn run(session: &Session, args: &DequantizeArgs) -> Outcome {
    let file = Source::open(&args.model)?;
    let codec = session.codec(Encoder::Default)?;
    let ty = args.float_type.into();
    let done = dequantize(&file, &args.output, ty, args.force, codec, &session.progress)?;
    session.printer.text(&format!(
        "{}: {} tensors decoded to {ty}, {}",
        done.output.display(),
        done.tensors,
        Bytes(done.bytes)
    ));
    session.printer.record("dequantize", &done);
    Ok(0)
}
