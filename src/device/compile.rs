//! Compiles every file with kernels for several architectures, without a GPU.

use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use super::nvrtc::{Architecture, Compiler, Image};
use super::sources::{FILES, unit};
use crate::error::DeviceError;

/// What a file became.
#[derive(Debug, Clone, Serialize)]
pub struct Compiled {
    /// The file.
    pub file: &'static str,
    /// The compute capability times ten that was asked for.
    pub architecture: u32,
    /// Whether it is machine code; otherwise the driver has to compile the rest.
    pub machine_code: bool,
    /// Bytes of the image.
    pub bytes: usize,
    /// How long it took; next to nothing where it was compiled before.
    pub seconds: f64,
}

/// Compiles all files, on all threads; results in the order of the architectures, then of the files.
///
/// # Errors
/// The first in that order.
pub fn compile_all(compiler: &Compiler, architectures: &[u32]) -> Result<Vec<Compiled>, DeviceError> {
    let jobs: Vec<(u32, &'static str)> = architectures
        .iter()
        .flat_map(|&architecture| FILES.iter().map(move |&(file, _)| (architecture, file)))
        .collect();
    let one = |&(architecture, file): &(u32, &'static str)| {
        let begin = Instant::now();
        let image = compiler.compile(unit(file), Architecture(architecture))?;
        let seconds = begin.elapsed().as_secs_f64();
        let (machine_code, bytes) = match &image {
            Image::Cubin(bytes) => (true, bytes.len()),
            Image::Ptx(bytes) => (false, bytes.len()),
        };
        Ok(Compiled { file, architecture, machine_code, bytes, seconds })
    };
    let results: Vec<Result<Compiled, DeviceError>> = jobs.par_iter().map(one).collect();
    results.into_iter().collect()
}
