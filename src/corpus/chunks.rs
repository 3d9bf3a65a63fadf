//! Cuts a calibration text into chunks of tokens, as llama-imatrix and llama-perplexity do, and chooses which of them to run.
//!
//! The whole text is tokenised at once; chunk `i` is tokens `i * ctx ..`, its first token replaced by BOS when the vocabulary begins texts
//! with it; what is left over at the end is dropped.

use std::ops::Range;

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};

use crate::Result;
use crate::error::ModelError;
use crate::llama::Model;

/// The name of the random stream that chooses chunks: part of its seed, so that no two uses of one `--seed` run in step.
const STREAM: &str = "calibration chunks";

/// Which chunks to run when there are more than asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// The first ones: what llama-imatrix does.
    First,
    /// A random sample by this seed, run in text order: covers the whole text.
    Seeded(u64),
}

/// A tokenised text, cut into chunks.
#[derive(Debug, Clone)]
pub struct Chunks {
    tokens: Vec<i32>,
    ctx: usize,
    bos: Option<i32>,
}

/// The chunks of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkPlan {
    /// Chunks whose inputs are summed, ascending.
    pub summed: Vec<usize>,
    /// Chunks that only give sample rows, ascending: text that the sums have not seen. Empty if all the text is summed.
    pub held_out: Vec<usize>,
}

impl Chunks {
    /// Tokenises `text` for `model` and cuts it into chunks of `ctx` tokens.
    ///
    /// # Errors
    /// [`ModelError::TextTooShort`] if it does not fill one chunk.
    pub fn new(model: &Model, text: &str, ctx: u32) -> Result<Self> {
        let tokens = model.tokenize(text, true, false)?;
        Self::from_tokens(tokens, ctx as usize, model.adds_bos().then(|| model.bos()))
    }

    fn from_tokens(tokens: Vec<i32>, ctx: usize, bos: Option<i32>) -> Result<Self> {
        if ctx == 0 || tokens.len() < ctx {
            return Err(ModelError::TextTooShort { tokens: tokens.len(), needed: ctx }.into());
        }
        Ok(Self { tokens, ctx, bos })
    }

    /// How many whole chunks there are.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.ctx
    }

    /// Never true: see [`Self::new`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of the whole text.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// The tokens of chunk `index`, BOS in place.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn get(&self, index: usize) -> Vec<i32> {
        let range: Range<usize> = index * self.ctx..(index + 1) * self.ctx;
        let mut chunk = self.tokens[range].to_vec();
        if let Some(bos) = self.bos {
            chunk[0] = bos;
        }
        chunk
    }

    /// Chooses at most `samples` chunks to sum up, and where text is left over, one further chunk for each 32 of them (rounded up) to
    /// take sample rows from.
    pub fn plan(&self, samples: usize, selection: Selection) -> ChunkPlan {
        let total = self.len();
        let taken = samples.clamp(1, total);
        let spare = taken.div_ceil(32).min(total - taken);
        let order: Vec<usize> = match selection {
            Selection::First => (0..total).collect(),
            Selection::Seeded(seed) => shuffled(total, seed),
        };
        let ascending = |part: &[usize]| {
            let mut part = part.to_vec();
            part.sort_unstable();
            part
        };
        let held_out = match selection {
            Selection::First => (0..spare).map(|i| taken + (total - taken) * (2 * i + 1) / (2 * spare)).collect(),
            Selection::Seeded(_) => ascending(&order[taken..taken + spare]),
        };
        ChunkPlan { summed: ascending(&order[..taken]), held_out }
    }
}

/// 0..n in random order (Fisher-Yates from the front). Written out, so that no version of a library changes which chunks a seed means.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let stream = xxhash_rust::xxh3::xxh3_64_with_seed(STREAM.as_bytes(), seed);
    let mut rng = ChaCha8Rng::seed_from_u64(stream);
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n {
        let left = (n - i) as u128;
        let pick = i + ((u128::from(rng.next_u64()) * left) >> 64) as usize;
        order.swap(i, pick);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(tokens: usize, ctx: usize) -> Chunks {
        Chunks::from_tokens((100..100 + tokens as i32).collect(), ctx, Some(1)).unwrap()
    }

    #[test]
    fn chunks_begin_with_bos_and_the_tail_is_dropped() {
        let c = chunks(11, 4);
        assert_eq!(c.len(), 2);
        assert_eq!(c.get(1), [1, 105, 106, 107]);
        assert!(Chunks::from_tokens(vec![0; 3], 4, None).unwrap_err().to_string().contains("3 tokens"));
    }

    #[test]
    fn the_first_chunks_are_those_of_llama_imatrix() {
        let plan = chunks(40, 4).plan(4, Selection::First);
        assert_eq!(plan, ChunkPlan { summed: vec![0, 1, 2, 3], held_out: vec![7] });
        let all = chunks(40, 4).plan(99, Selection::First);
        assert_eq!(all, ChunkPlan { summed: (0..10).collect(), held_out: vec![] });
    }

    #[test]
    fn a_seed_names_its_chunks_for_ever() {
        let plan = chunks(400, 4).plan(5, Selection::Seeded(42));
        assert_eq!(plan, chunks(400, 4).plan(5, Selection::Seeded(42)));
        assert_ne!(plan, chunks(400, 4).plan(5, Selection::Seeded(43)));
        assert!(plan.summed.is_sorted() && !plan.summed.contains(&plan.held_out[0]));
        let all = chunks(40, 4).plan(10, Selection::Seeded(42));
        assert_eq!(all, ChunkPlan { summed: (0..10).collect(), held_out: vec![] });
    }
}
