//! Cuts a text into chunks of tokens, as llama-imatrix and llama-perplexity do, and chooses which of them to run.
//!
//! The whole text is tokenised at once; chunk `i` is tokens `i * ctx ..`, its first token replaced by BOS when the vocabulary begins texts
//! with it; what is left over at the end is dropped. Where sources have weights, each is tokenised and cut on its own, and the chunks to run are
//! dealt out in proportion.

use std::ops::Range;

use super::{Corpus, Cut, Part, Piece};
use crate::Result;
use crate::error::{CorpusError, ModelError};
use crate::llama::Model;
use crate::util::random::{below, shuffled, stream};

/// The name of the random stream that chooses chunks.
const STREAM: &str = "calibration chunks";
/// The name of the random stream that places windows.
const WINDOW_STREAM: &str = "windows";

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
    /// Where each chunk begins in `tokens`, ascending.
    starts: Vec<usize>,
    /// The sources, where each is cut on its own.
    shares: Option<Vec<Share>>,
}

/// The chunks of one source.
#[derive(Debug, Clone)]
struct Share {
    name: String,
    chunks: Range<usize>,
    tokens: usize,
    weight: Option<f64>,
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

    /// Tokenises a corpus for `model` and cuts it into chunks of `ctx` tokens: as one text, or source by source where they have weights or
    /// give windows. Control tokens are parsed where the corpus says so.
    ///
    /// # Errors
    /// [`ModelError::TextTooShort`] if it does not fill one chunk, [`CorpusError::NoSamples`] if a source with a weight does not.
    pub fn of(model: &Model, corpus: &Corpus, ctx: u32) -> Result<Self> {
        let bos = model.adds_bos().then(|| model.bos());
        let tokenize = |text: &str, begin: bool, special: bool| model.tokenize(text, begin, special);
        Self::build(corpus, ctx as usize, bos, &tokenize)
    }

    fn build(corpus: &Corpus, ctx: usize, bos: Option<i32>, tokenize: Tokenize) -> Result<Self> {
        if !corpus.is_dealt() {
            let pieces: Vec<&Piece> = corpus.parts.iter().flat_map(|part| &part.pieces).collect();
            return Self::from_tokens(joined(corpus, &pieces, bos, tokenize)?, ctx, bos);
        }
        let mut all = Self { tokens: Vec::new(), ctx, bos, starts: Vec::new(), shares: None };
        let mut shares = Vec::new();
        for part in &corpus.parts {
            shares.push(all.append(corpus, part, tokenize)?);
        }
        if all.is_empty() {
            return Err(ModelError::TextTooShort { tokens: all.tokens.len(), needed: ctx }.into());
        }
        all.shares = Some(shares);
        Ok(all)
    }

    /// Adds the chunks of one source.
    fn append(&mut self, corpus: &Corpus, part: &Part, tokenize: Tokenize) -> Result<Share> {
        let (first, offset) = (self.starts.len(), self.tokens.len());
        match part.cut {
            Cut::Stream => {
                let pieces: Vec<&Piece> = part.pieces.iter().collect();
                self.tokens.extend(joined(corpus, &pieces, self.bos, tokenize)?);
                let whole = (self.tokens.len() - offset).checked_div(self.ctx).unwrap_or(0);
                self.starts.extend((0..whole).map(|i| offset + i * self.ctx));
            }
            Cut::Windows { wanted, seed } => {
                let mut rng = stream(WINDOW_STREAM, seed);
                for piece in &part.pieces {
                    if self.starts.len() - first >= wanted {
                        break;
                    }
                    let tokens = tokenize(&corpus.text[piece.range.clone()], false, piece.special)?;
                    if self.ctx > 0 && tokens.len() >= self.ctx {
                        let from = below(&mut rng, tokens.len() - self.ctx + 1);
                        self.starts.push(self.tokens.len());
                        self.tokens.extend(&tokens[from..from + self.ctx]);
                    }
                }
            }
        }
        let chunks = first..self.starts.len();
        if part.weight.is_some() && chunks.is_empty() {
            let what = format!("{} tokens, too few for one chunk of {}", self.tokens.len() - offset, self.ctx);
            return Err(CorpusError::NoSamples { name: part.name.clone(), what }.into());
        }
        Ok(Share { name: part.name.clone(), chunks, tokens: self.tokens.len() - offset, weight: part.weight })
    }

    fn from_tokens(tokens: Vec<i32>, ctx: usize, bos: Option<i32>) -> Result<Self> {
        if ctx == 0 || tokens.len() < ctx {
            return Err(ModelError::TextTooShort { tokens: tokens.len(), needed: ctx }.into());
        }
        let starts = (0..tokens.len() / ctx).map(|i| i * ctx).collect();
        Ok(Self { tokens, ctx, bos, starts, shares: None })
    }

    /// How many whole chunks there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Never true: see [`Self::new`].
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
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
        let start = self.starts[index];
        let mut chunk = self.tokens[start..start + self.ctx].to_vec();
        if let Some(bos) = self.bos {
            chunk[0] = bos;
        }
        chunk
    }

    /// Chooses at most `samples` chunks to sum up, and where text is left over, one further chunk for each 32 of them (rounded up) to
    /// take sample rows from.
    ///
    /// Where sources have weights, their shares of the chunks are their shares of the weights, to the nearest chunk; a source with too few
    /// chunks for its share makes all of them fewer ([`Self::shortage`]).
    pub fn plan(&self, samples: usize, selection: Selection) -> ChunkPlan {
        match self.weights() {
            Some(weights) => dealt(samples, selection, &weights),
            None => self.sampled(samples, selection),
        }
    }

    fn sampled(&self, samples: usize, selection: Selection) -> ChunkPlan {
        let total = self.len();
        let taken = samples.clamp(1, total);
        let spare = taken.div_ceil(32).min(total - taken);
        let order: Vec<usize> = match selection {
            Selection::First => (0..total).collect(),
            Selection::Seeded(seed) => shuffled(total, STREAM, seed),
        };
        let held_out = match selection {
            Selection::First => (0..spare).map(|i| taken + (total - taken) * (2 * i + 1) / (2 * spare)).collect(),
            Selection::Seeded(_) => ascending(order[taken..taken + spare].to_vec()),
        };
        ChunkPlan { summed: ascending(order[..taken].to_vec()), held_out }
    }

    /// Whether a source's few chunks keep the run below `samples`: the source, its chunks, and the chunks of the whole run.
    pub fn shortage(&self, samples: usize) -> Option<(String, usize, usize)> {
        let weights = self.weights()?;
        let lengths: Vec<usize> = weights.iter().map(|(share, _)| share.chunks.len()).collect();
        let only: Vec<f64> = weights.iter().map(|(_, weight)| *weight).collect();
        let fitting = fitting(samples, &lengths, &only);
        let scarce = |(share, weight): &&(&Share, f64)| share.chunks.len() as f64 / weight;
        let scarcest = weights.iter().min_by(|a, b| scarce(a).total_cmp(&scarce(b)))?.0;
        (fitting < samples).then(|| (scarcest.name.clone(), scarcest.chunks.len(), fitting))
    }

    /// Tokens of each source and its chunks among those summed up, where sources are cut on their own.
    pub(super) fn by_source(&self, plan: &ChunkPlan) -> Option<Vec<(usize, usize)>> {
        let count = |chunks: &Range<usize>| plan.summed.iter().filter(|chunk| chunks.contains(chunk)).count();
        self.shares.as_ref().map(|shares| shares.iter().map(|share| (share.tokens, count(&share.chunks))).collect())
    }

    /// The sources with their weights, if they have any.
    fn weights(&self) -> Option<Vec<(&Share, f64)>> {
        self.shares.as_ref()?.iter().map(|share| Some((share, share.weight?))).collect()
    }
}

impl Corpus {
    /// The tokens of the whole text as `model` reads it, whatever weights the sources have. Control tokens are parsed where the corpus says so.
    ///
    /// # Errors
    /// What the tokeniser refuses.
    pub fn tokenize(&self, model: &Model) -> Result<Vec<i32>> {
        let pieces: Vec<&Piece> = self.parts.iter().flat_map(|part| &part.pieces).collect();
        let bos = model.adds_bos().then(|| model.bos());
        joined(self, &pieces, bos, &|text, begin, special| model.tokenize(text, begin, special))
    }
}

/// Deals `samples` chunks out to sources with these weights.
fn dealt(samples: usize, selection: Selection, weights: &[(&Share, f64)]) -> ChunkPlan {
    let lengths: Vec<usize> = weights.iter().map(|(share, _)| share.chunks.len()).collect();
    let weights_only: Vec<f64> = weights.iter().map(|(_, weight)| *weight).collect();
    let taken = fitting(samples, &lengths, &weights_only);
    let quotas = apportion(taken, &weights_only);
    let spare = apportion(taken.div_ceil(32), &weights_only);
    let mut plan = ChunkPlan { summed: Vec::new(), held_out: Vec::new() };
    for (source, (share, _)) in weights.iter().enumerate() {
        let count = lengths[source];
        let order: Vec<usize> = match selection {
            Selection::First => (0..count).collect(),
            Selection::Seeded(seed) => shuffled(count, &format!("{STREAM} of source {source}"), seed),
        };
        let quota = quotas[source].min(count);
        let rest = spare[source].min(count - quota);
        plan.summed.extend(order[..quota].iter().map(|i| share.chunks.start + i));
        plan.held_out.extend(order[quota..quota + rest].iter().map(|i| share.chunks.start + i));
    }
    ChunkPlan { summed: ascending(plan.summed), held_out: ascending(plan.held_out) }
}

/// Turns text into tokens; whether it begins a text, and whether control tokens are parsed.
type Tokenize<'a> = &'a dyn Fn(&str, bool, bool) -> Result<Vec<i32>>;

/// The tokens of consecutive pieces, with what stands between them. Neighbours that are tokenised alike are tokenised in one go.
fn joined(corpus: &Corpus, pieces: &[&Piece], bos: Option<i32>, tokenize: Tokenize) -> Result<Vec<i32>> {
    let mut tokens: Vec<i32> = Vec::new();
    for run in pieces.chunk_by(|a, b| a.special == b.special) {
        let range = run[0].range.start..run[run.len() - 1].range.end;
        let begins = tokens.is_empty();
        // The separator before a run belongs to it, so that no character is lost between two runs.
        let start = match begins {
            true => range.start,
            false => pieces.iter().map(|piece| piece.range.end).filter(|end| *end <= range.start).max().unwrap_or(0),
        };
        tokens.extend(tokenize(&corpus.text[start..range.end], begins, run[0].special)?);
    }
    // A chat template may begin with BOS, which the tokeniser has put there already.
    if let (Some(bos), [first, second, ..]) = (bos, &tokens[..])
        && (*first, *second) == (bos, bos)
    {
        tokens.remove(0);
    }
    Ok(tokens)
}

fn ascending(mut chunks: Vec<usize>) -> Vec<usize> {
    chunks.sort_unstable();
    chunks
}

/// Divides `n` by `weights`, to whole numbers that add up to `n` (largest remainders; among equals the earlier one).
fn apportion(n: usize, weights: &[f64]) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| n as f64 * weight / total).collect();
    let mut parts: Vec<usize> = exact.iter().map(|part| part.floor() as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let missing = n.saturating_sub(parts.iter().sum());
    for &source in order.iter().take(missing) {
        parts[source] += 1;
    }
    parts
}

/// The most chunks up to `samples` that can be dealt out by `weights` from sources with `lengths` chunks; at least one.
fn fitting(samples: usize, lengths: &[usize], weights: &[f64]) -> usize {
    let most = samples.clamp(1, lengths.iter().sum::<usize>().max(1));
    let fits = |n: &usize| apportion(*n, weights).iter().zip(lengths).all(|(part, length)| part <= length);
    (1..=most).rev().find(fits).unwrap_or(1)
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
