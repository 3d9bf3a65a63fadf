//! How far a model moves from itself when the inputs of a few multiplications are rounded: many small changes, each tried on the same text.
//! Changes of weights cannot be tried here; what the numbers mean is said elsewhere.

use rayon::prelude::*;

use super::simulate::Simulation;
use super::softmax::compare;
use super::statistics::{Estimate, Moments};
use crate::Result;
use crate::error::{Error, ModelError};
use crate::llama::{Context, ContextOptions, Logits, Model, Watch};
use crate::util::progress::{Progress, Unit};

/// Tokens of one graph at most, as in llama.cpp's tools.
const UBATCH: u32 = 512;

/// The position whose logits are the first to be compared: what stands at the beginning of a chunk follows hardly anything.
fn first(ctx: usize) -> usize {
    ctx / 8
}

/// Measures the KL divergence of `model` with each of `probes` from itself without, in nats, over all but the first eighth of each of `chunks`,
/// all of one length. Runs the model once for each chunk and probe, and once more for each chunk; keeps the logits of all chunks in memory.
///
/// # Errors
/// [`ModelError::LogitsNotFinite`], what llama.cpp refuses, and [`Error::Interrupted`].
pub fn probe(
    model: &Model,
    chunks: &[Vec<i32>],
    probes: Vec<Simulation>,
    threads: u32,
    progress: &dyn Progress,
) -> Result<Vec<Estimate>> {
    let ctx = chunks.first().map_or(0, Vec::len);
    progress.begin("sensitivities", ((probes.len() + 1) * chunks.len() * ctx) as u64, Unit::Tokens);
    let mut runner = Runner { model, chunks, threads, progress };
    let base = runner.run(None)?;
    let one = |probe: Simulation| {
        let logits = runner.run(Some(probe))?;
        let mut moments = Moments::default();
        for (index, ((base, own), chunk)) in base.iter().zip(&logits).zip(chunks).enumerate() {
            let first = first(ctx);
            let vocab = model.vocab_size();
            let rows = own.par_chunks_exact(vocab).zip(base.par_chunks_exact(vocab)).zip(&chunk[first + 1..]);
            let found: Vec<f64> = rows.map(|((row, base), &target)| compare(row, base, target as usize).kld).collect();
            for kld in found {
                moments.add(kld);
            }
            if !moments.sum.is_finite() {
                return Err(ModelError::LogitsNotFinite { path: model.path().to_path_buf(), chunk: index }.into());
            }
        }
        Ok(moments.estimate())
    };
    let found = probes.into_iter().map(one).collect::<Result<Vec<_>>>()?;
    progress.end();
    Ok(found)
}

/// Runs chunks.
struct Runner<'a> {
    model: &'a Model,
    chunks: &'a [Vec<i32>],
    threads: u32,
    progress: &'a dyn Progress,
}

impl Runner<'_> {
    /// The logits of all chunks. A context of its own: the nodes that a rewriter wants may not change over the life of one.
    fn run(&mut self, mut simulation: Option<Simulation>) -> Result<Vec<Vec<f32>>> {
        let ctx = self.chunks.first().map_or(0, Vec::len);
        let options = ContextOptions {
            ubatch: (ctx as u32).min(UBATCH),
            threads: self.threads,
            observe: true,
            ..ContextOptions::new(ctx as u32)
        };
        let mut context = Context::new(self.model, &options)?;
        let mut all = Vec::with_capacity(self.chunks.len());
        for chunk in self.chunks {
            if self.progress.interrupted() {
                return Err(Error::Interrupted);
            }
            context.clear();
            let logits = Logits::From(first(ctx));
            match &mut simulation {
                None => context.decode(chunk, logits)?,
                Some(simulation) => {
                    let watch = Watch { observer: None, rewriter: Some(simulation) };
                    context.decode_watched(chunk, logits, watch)?;
                }
            }
            all.push(context.logits().to_vec());
            self.progress.advance(ctx as u64);
        }
        Ok(all)
    }
}
