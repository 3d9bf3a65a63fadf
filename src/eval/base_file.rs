//! The file of log-probabilities of a reference model that llama-perplexity writes (`--save-all-logits`) and reads (`--kl-divergence-base`).
//! Read and written chunk by chunk, never whole in memory.
//!
//! Little endian: `_logits_`, u32 tokens of a chunk, i32 vocabulary, i32 chunks, the i32 tokens of all chunks as the text has them (BOS not
//! yet in place), then for each chunk and each of its `ctx - 1 - ctx / 2` scored positions a row of 16-bit words: an f32 step, an f32 least
//! log-probability, a code for each token, and a word of padding if the vocabulary is odd. A log-probability is least + step * code.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::softmax::store;
use crate::error::{Error, EvalError, Result};
use crate::util::atomic_file::AtomicFile;

const MAGIC: &[u8; 8] = b"_logits_";

/// Bytes before the tokens.
const HEADER: u64 = 20;

/// 16-bit words of a row before its codes.
const ROW_HEAD: usize = 4;

/// Tokens of a chunk and of a vocabulary, at most: far beyond any model.
const LIMIT: i64 = 1 << 24;

/// The first position of a chunk whose logits are scored.
pub(super) fn first_scored(ctx: usize) -> usize {
    ctx / 2
}

/// How much a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitsShape {
    /// Tokens of a chunk.
    pub ctx: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Chunks.
    pub chunks: usize,
}

impl LogitsShape {
    /// Scored positions of a chunk.
    pub fn rows(&self) -> usize {
        self.ctx - 1 - first_scored(self.ctx)
    }

    /// Bytes of the file; `None` beyond what a file can have.
    pub fn bytes(&self) -> Option<u64> {
        let chunk = (self.chunk_words() as u64).checked_mul(2)?.checked_add(4 * self.ctx as u64)?;
        chunk.checked_mul(self.chunks as u64)?.checked_add(HEADER)
    }

    fn row_words(&self) -> usize {
        2 * self.vocab.div_ceil(2) + ROW_HEAD
    }

    /// 16-bit words of the rows of a chunk.
    fn chunk_words(&self) -> usize {
        self.rows() * self.row_words()
    }

    /// Where the rows of a chunk begin.
    fn offset(&self, chunk: usize) -> u64 {
        HEADER + 4 * (self.ctx * self.chunks) as u64 + 2 * (self.chunk_words() as u64) * chunk as u64
    }
}

/// A row as it lies in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredRow<'a> {
    /// The step between two codes.
    pub(super) scale: f32,
    /// The log-probability of code 0.
    pub(super) least: f32,
    /// A code for each token of the vocabulary.
    pub(super) codes: &'a [u16],
}

/// A file that is being read.
#[derive(Debug)]
pub struct LogitsReader {
    path: PathBuf,
    file: File,
    shape: LogitsShape,
    tokens: Vec<i32>,
    words: Vec<u16>,
    chunk: usize,
}

impl LogitsReader {
    /// Opens a file and reads its tokens. Everything in the header and the length of the file are checked before memory is taken.
    ///
    /// # Errors
    /// [`EvalError::LogitsMagic`], [`EvalError::LogitsHeader`] and [`EvalError::LogitsLength`] for files that are none or not complete.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        let found = file.metadata().map_err(Error::io(path, "look at"))?.len();
        let shape = header(path, &mut file, found)?;
        let expected = shape.bytes().unwrap_or(u64::MAX);
        if expected != found {
            return Err(EvalError::LogitsLength { path: path.to_path_buf(), expected, found }.into());
        }
        let mut tokens = vec![0i32; shape.ctx * shape.chunks];
        file.read_exact(bytemuck::cast_slice_mut(&mut tokens)).map_err(Error::io(path, "read"))?;
        if let Some(&token) = tokens.iter().find(|&&token| token < 0 || token as usize >= shape.vocab) {
            return Err(bad_header(path, "a token of the text", format!("0 to {}", shape.vocab - 1), token.into()));
        }
        Ok(Self { path: path.to_path_buf(), file, shape, tokens, words: Vec::new(), chunk: 0 })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How much it holds.
    pub fn shape(&self) -> LogitsShape {
        self.shape
    }

    /// The tokens of all chunks.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// Reads the rows of the next chunk.
    ///
    /// # Errors
    /// Rows that are no log-probabilities, and what the operating system refuses.
    pub(super) fn next_chunk(&mut self) -> Result<Vec<StoredRow<'_>>> {
        self.words.resize(self.shape.chunk_words(), 0);
        let bytes = bytemuck::cast_slice_mut(&mut self.words);
        self.file.read_exact(bytes).map_err(Error::io(&self.path, "read"))?;
        let chunk = self.chunk;
        self.chunk += 1;
        let rows = self.words.chunks_exact(self.shape.row_words()).map(|words| {
            let float = |at: usize| f32::from_bits(u32::from(words[at]) | u32::from(words[at + 1]) << 16);
            let (scale, least) = (float(0), float(2));
            if !(scale.is_finite() && scale >= 0.0 && least.is_finite()) {
                return Err(EvalError::LogitsRow { path: self.path.clone(), chunk, least, scale }.into());
            }
            Ok(StoredRow { scale, least, codes: &words[ROW_HEAD..ROW_HEAD + self.shape.vocab] })
        });
        rows.collect()
    }
}

fn bad_header(path: &Path, field: &'static str, expected: String, found: i64) -> Error {
    EvalError::LogitsHeader { path: path.to_path_buf(), field, expected, found }.into()
}

fn header(path: &Path, file: &mut File, length: u64) -> Result<LogitsShape> {
    let mut bytes = [0; HEADER as usize];
    let magic = || Error::from(EvalError::LogitsMagic { path: path.to_path_buf() });
    if length < HEADER {
        return Err(magic());
    }
    file.read_exact(&mut bytes).map_err(Error::io(path, "read"))?;
    if &bytes[..8] != MAGIC {
        return Err(magic());
    }
    let number = |at: usize, field, least: i64| {
        let found = i64::from(i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        let fits = (least..=LIMIT).contains(&found);
        if fits { Ok(found as usize) } else { Err(bad_header(path, field, format!("{least} to {LIMIT}"), found)) }
    };
    Ok(LogitsShape {
        ctx: number(8, "the length of a chunk", 4)?,
        vocab: number(12, "the size of the vocabulary", 1)?,
        chunks: number(16, "the number of chunks", 1)?,
    })
}

/// A file that is being written; nothing is under its name before [`LogitsWriter::commit`].
#[derive(Debug)]
pub struct LogitsWriter {
    file: AtomicFile,
    shape: LogitsShape,
    words: Vec<u16>,
    chunk: usize,
}

impl LogitsWriter {
    /// Begins a file for the text `tokens` (all chunks, one after the other) with its whole length reserved.
    ///
    /// # Errors
    /// What [`AtomicFile`] refuses; too little space.
    pub fn create(path: &Path, force: bool, inputs: &[&Path], shape: LogitsShape, tokens: &[i32]) -> Result<Self> {
        let file = AtomicFile::create(path, force, inputs)?;
        file.reserve(shape.bytes().unwrap_or(u64::MAX))?;
        let mut head = MAGIC.to_vec();
        for number in [shape.ctx, shape.vocab, shape.chunks] {
            head.extend((number as u32).to_le_bytes());
        }
        file.write_at(&head, 0)?;
        file.write_at(bytemuck::cast_slice(&tokens[..shape.ctx * shape.chunks]), HEADER)?;
        Ok(Self { file, shape, words: vec![0; shape.chunk_words()], chunk: 0 })
    }

    /// Appends the logits of a chunk's scored positions, row after row, and gives the negative log-likelihood of each target.
    pub(super) fn write_chunk(&mut self, logits: &[f32], targets: &[i32]) -> Result<Vec<f64>> {
        let vocab = self.shape.vocab;
        let rows = self.words.par_chunks_exact_mut(self.shape.row_words());
        let scores = rows.zip(logits.par_chunks_exact(vocab)).zip(targets).map(|((words, row), &target)| {
            let (scale, least, score) = store(row, target as usize, &mut words[ROW_HEAD..ROW_HEAD + vocab]);
            for (at, value) in [(0, scale), (2, least)] {
                words[at] = value.to_bits() as u16;
                words[at + 1] = (value.to_bits() >> 16) as u16;
            }
            score
        });
        let scores: Vec<f64> = scores.collect();
        self.file.write_at(bytemuck::cast_slice(&self.words), self.shape.offset(self.chunk))?;
        self.chunk += 1;
        Ok(scores)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn commit(self) -> Result<()> {
        self.file.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: LogitsShape = LogitsShape { ctx: 8, vocab: 5, chunks: 2 };

    fn written(dir: &Path) -> PathBuf {
        let path = dir.join("base");
        let tokens: Vec<i32> = (0..16).map(|i| i % 5).collect();
        let mut writer = LogitsWriter::create(&path, false, &[], SHAPE, &tokens).unwrap();
        for chunk in 0..2 {
            let logits: Vec<f32> = (0..15).map(|i| ((i * 7 + chunk) % 11) as f32).collect();
            let scores = writer.write_chunk(&logits, &[1, 2, 3]).unwrap();
            assert!(scores.iter().all(|&score| score > 0.0));
        }
        writer.commit().unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        // 20 + 2 chunks of 8 tokens and 3 rows of 4 + 6 words.
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 20 + 2 * (32 + 3 * 20));
        let mut reader = LogitsReader::open(&path).unwrap();
        assert_eq!((reader.shape(), reader.tokens()[7]), (SHAPE, 2));
        reader.next_chunk().unwrap();
        let rows = reader.next_chunk().unwrap();
        // Row 1 of chunk 1: 36, 43, .. modulo 11 = 3, 10, 6, 2, 9.
        assert_eq!((rows.len(), rows[1].codes.len()), (3, 5));
        let steps: Vec<f32> = rows[1].codes.iter().map(|&code| f32::from(code) * rows[1].scale).collect();
        assert!(steps.iter().zip([1.0, 8.0, 4.0, 0.0, 7.0]).all(|(a, b)| (a - b).abs() < 2e-4), "{steps:?}");
    }

    #[test]
    fn damaged_files_are_refused_before_memory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let good = std::fs::read(written(dir.path())).unwrap();
        let path = dir.path().join("bad");
        let refusal = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            match LogitsReader::open(&path).unwrap_err() {
                Error::Eval(error) => error,
                other => panic!("{other}"),
            }
        };
        assert!(matches!(refusal(b""), EvalError::LogitsMagic { .. }));
        assert!(matches!(refusal(b"GGUF and something after it"), EvalError::LogitsMagic { .. }));
        assert!(matches!(refusal(&good[..good.len() - 1]), EvalError::LogitsLength { expected: 204, found: 203, .. }));
        let edited = |at: usize, value: i32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            bytes
        };
        for (at, value) in [(8, 3), (8, -1), (12, 0), (16, 0), (16, i32::MAX), (20, 5), (20, -1)] {
            let error = refusal(&edited(at, value));
            assert!(matches!(error, EvalError::LogitsHeader { found, .. } if found == i64::from(value)), "{error}");
        }
        assert!(matches!(refusal(&edited(16, 1 << 24)), EvalError::LogitsLength { .. }));
        std::fs::write(&path, edited(20 + 64, f32::NAN.to_bits() as i32)).unwrap();
        assert!(LogitsReader::open(&path).unwrap().next_chunk().is_err());
    }
}
