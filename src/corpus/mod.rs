//! Texts to calibrate with and to measure on: data sets by name and files, joined to one text. What becomes of the text is decided by those who
//! run it; `chunks` cuts it.
//!
//! | file | a sample is |
//! | --- | --- |
//! | `.json` | an element of the array, or of the array under samples, data, texts or calibration: a string, or an object |
//! | `.jsonl`, `.ndjson` | a line: a string, or an object |
//! | `.csv` | a line's column `text`, or another that is named |
//! | anything else | the whole text, verbatim: a run over one file sees the very text that llama-imatrix sees |
//!
//! Each of them may be compressed (`.gz`). Of an object, `messages` or `conversations` is a conversation, rendered with the model's chat
//! template; otherwise the text lies under text, content, sample or prompt. Samples that repeat an earlier one byte for byte are dropped and
//! counted, empty ones too. Texts are joined with a blank line between them, conversations with nothing.

pub mod cache;
pub mod catalogue;
mod chat;
pub mod chunks;
mod fetch;
mod http;
mod load;
pub mod overlap;
mod read;
pub mod report;
pub mod rules;
pub mod source;

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_128;

pub use self::cache::Store;
pub use self::catalogue::Purpose;
pub use self::chat::ChatTemplate;
pub use self::load::{LoadOptions, dataset, fetch, is_here, load};
pub use self::overlap::Overlap;
pub use self::report::Composition;
pub use self::source::SourceSpec;
use crate::error::{CorpusError, ModelError};
use crate::util::progress::NoProgress;
use crate::{Error, Result};

/// What stands between two samples.
const SEPARATOR: &str = "\n\n";

/// A text and where it came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Corpus {
    /// All samples, joined.
    pub text: String,
    /// The names of the sources.
    pub sources: Vec<String>,
    /// Samples kept.
    pub samples: usize,
    /// Samples dropped because an earlier one is the same.
    pub duplicates: usize,
    /// What each source gave, in order.
    pub parts: Vec<Part>,
    /// How much of the text also stands in an evaluation text, if that was asked.
    pub overlap: Option<Overlap>,
    seen: HashSet<u128>,
}

/// What one source gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// The source as the user named it.
    pub name: String,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// The part of a data set that it is.
    pub split: Option<&'static str>,
    /// The data set's licence.
    pub licence: Option<&'static str>,
    /// The sampling rule.
    pub rule: &'static str,
    /// Its share of the chunks, relative to the others.
    pub weight: Option<f64>,
    /// Samples kept.
    pub samples: usize,
    /// Conversations among them.
    pub chats: usize,
    /// Samples dropped because an earlier one, of any source, is the same.
    pub duplicates: usize,
    cut: Cut,
    pieces: Vec<Piece>,
}

/// How the tokens of a part become chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Cut {
    /// One chunk after the other through the joined text.
    #[default]
    Stream,
    /// One random window of each piece that is long enough, at most this many, by this seed.
    Windows { wanted: usize, seed: u64 },
}

/// A sample in the joined text.
#[derive(Debug, Clone, PartialEq)]
struct Piece {
    range: Range<usize>,
    /// Whether its text may spell control tokens.
    special: bool,
    chat: bool,
}

impl Corpus {
    /// Reads and joins `paths`, in order.
    ///
    /// # Errors
    /// If a file cannot be read or is not what its name says, and if there is no text in all of them.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let specs: Vec<SourceSpec> = paths.iter().map(SourceSpec::file).collect();
        load(&specs, Purpose::Evaluation, &LoadOptions::default(), &NoProgress)
    }

    /// A corpus of one text that is no file, for instance the one that ships with the binary.
    ///
    /// # Errors
    /// If it is empty.
    pub fn from_text(name: &str, text: &str) -> Result<Self> {
        let mut corpus = Self::default();
        corpus.begin(Part { name: name.to_owned(), rule: "raw", ..Part::default() });
        corpus.add(text, false, false)?;
        corpus.checked()
    }

    /// A short hash of the text, and of how it is divided where that is not told by the text.
    pub fn hash(&self) -> String {
        let plain = !self.is_dealt() && self.parts.iter().flat_map(|part| &part.pieces).all(|piece| !piece.special);
        let text = xxh3_128(self.text.as_bytes());
        if plain {
            return format!("{text:032x}");
        }
        let parts: Vec<_> = self.parts.iter().map(|part| (part.weight, part.cut, &part.pieces)).collect();
        format!("{:032x}", xxh3_128(format!("{text:032x} {parts:?}").as_bytes()))
    }

    /// Whether each source is cut into chunks on its own.
    fn is_dealt(&self) -> bool {
        self.parts.iter().any(|part| part.weight.is_some() || part.cut != Cut::Stream)
    }

    /// Begins the next source.
    fn begin(&mut self, part: Part) {
        self.sources.push(part.name.clone());
        self.parts.push(part);
    }

    /// Adds a sample to the source that was begun last.
    fn add(&mut self, sample: &str, special: bool, chat: bool) -> Result<()> {
        let Some(part) = self.parts.last_mut() else { return Ok(()) };
        if sample.trim().is_empty() {
            return Ok(());
        }
        if !self.seen.insert(xxh3_128(sample.as_bytes())) {
            part.duplicates += 1;
            self.duplicates += 1;
            return Ok(());
        }
        if (self.text.len() + sample.len()) as u64 > read::MAX_TEXT {
            return Err(CorpusError::TooLarge { name: part.name.clone(), limit: read::MAX_TEXT }.into());
        }
        if self.samples > 0 && !(chat && part.pieces.last().is_some_and(|last| last.chat)) {
            self.text.push_str(SEPARATOR);
        }
        let start = self.text.len();
        self.text.push_str(sample);
        part.pieces.push(Piece { range: start..self.text.len(), special, chat });
        part.samples += 1;
        part.chats += usize::from(chat);
        self.samples += 1;
        Ok(())
    }

    fn checked(self) -> Result<Self> {
        if self.samples == 0 {
            return Err(Error::from(ModelError::CalibrationEmpty { sources: self.sources }));
        }
        Ok(self)
    }
}

impl Part {
    /// The samples, in order.
    fn texts<'a>(&'a self, corpus: &'a Corpus) -> impl Iterator<Item = &'a str> {
        self.pieces.iter().map(|piece| &corpus.text[piece.range.clone()])
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
