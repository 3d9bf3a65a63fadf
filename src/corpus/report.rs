//! What went into a corpus, for records and for people: sources, tokens, chunks, duplicates, kinds of text, overlap.

use serde::Serialize;

use super::chunks::{ChunkPlan, Chunks};
use super::overlap::Overlap;
use super::rules::paragraphs;
use super::{Corpus, Part};
use crate::util::hash::sha256_hex;

/// Kinds of text by the words that give them away, compared in lower case; the first kind that fits is taken.
const DOMAINS: [(&str, &[&str]); 4] = [
    (
        "code",
        &[
            "def ",
            "return ",
            "import ",
            "#include",
            "function(",
            "() {",
            "();",
            "class ",
            "fn ",
            "const ",
            "var ",
            "</",
            "select * ",
            "std::",
            "```",
            "=>",
            "!=",
            "printf",
        ],
    ),
    (
        "scientific",
        &[
            "hypothesis",
            "experiment",
            "molecule",
            "protein",
            "species",
            "quantum",
            "theory of",
            "et al",
            "laboratory",
            "physics",
            "chemistry",
            "biology",
            "genome",
            "neuron",
            "spectr",
            "climate",
            "doi:",
        ],
    ),
    (
        "conversational",
        &[
            "<|im_start|>",
            "<|start_header_id|>",
            "[inst]",
            "user:",
            "assistant:",
            "human:",
            "how are you",
            "thank you",
            "thanks",
            "please",
            "hello",
            "hi,",
            "let me know",
            "you're",
            "i'm ",
            "i'd ",
        ],
    ),
    (
        "mathematical",
        &[
            "theorem",
            "lemma",
            "proof",
            "equation",
            "integral",
            "derivative",
            "polynomial",
            "matrix",
            "\\frac",
            "\\sum",
            "solve for",
            "how many",
            "arithmetic",
            "algebra",
            "geometry",
        ],
    ),
];

/// What no kind fits.
const OTHER: &str = "other";

/// What went into a corpus, and which part of it was run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Composition {
    /// Samples kept.
    pub samples: usize,
    /// Samples dropped because an earlier one is the same.
    pub duplicates: usize,
    /// Tokens of the text.
    pub tokens: usize,
    /// Chunks that are summed up.
    pub chunks: usize,
    /// The sources, in order.
    pub sources: Vec<SourceReport>,
    /// Kinds of text with their share of the characters, by keywords: an indication, no more.
    pub domains: Vec<(&'static str, f64)>,
    /// How much of it stands in an evaluation text, if that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
}

/// What one source gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceReport {
    /// The source as the user named it.
    pub name: String,
    /// The part of a data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<&'static str>,
    /// The data set's licence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<&'static str>,
    /// The sampling rule.
    pub rule: &'static str,
    /// The weight that the user gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Samples kept.
    pub samples: usize,
    /// Conversations among them.
    pub chats: usize,
    /// Samples dropped because an earlier one is the same.
    pub duplicates: usize,
    /// Characters of the samples.
    pub characters: usize,
    /// SHA-256 of the samples' text, joined as it was used.
    pub sha256: String,
    /// Tokens; `None` where the sources make one text, whose tokens are not told apart.
    pub tokens: Option<usize>,
    /// Chunks of it that are summed up; `None` as above.
    pub chunks: Option<usize>,
}

impl Composition {
    /// Describes a corpus that was cut into `chunks`, of which `plan` is run.
    pub fn new(corpus: &Corpus, chunks: &Chunks, plan: &ChunkPlan) -> Self {
        let dealt = chunks.by_source(plan);
        let single = corpus.parts.len() == 1;
        let sources = corpus.parts.iter().enumerate().map(|(i, part)| {
            let counts = match &dealt {
                Some(dealt) => dealt.get(i).copied(),
                None => single.then(|| (chunks.tokens().len(), plan.summed.len())),
            };
            source(corpus, part, counts)
        });
        Self {
            samples: corpus.samples,
            duplicates: corpus.duplicates,
            tokens: chunks.tokens().len(),
            chunks: plan.summed.len(),
            sources: sources.collect(),
            domains: domains(corpus),
            overlap: corpus.overlap.clone(),
        }
    }

    /// The report in lines for a terminal.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.sources.iter().map(SourceReport::line).collect();
        let domains = self.domains.iter().map(|(name, share)| format!("{name} {:.0} %", share * 100.0));
        lines.push(format!(
            "text: {}, {} tokens, {}; by keywords: {}",
            counted(self.samples, "sample"),
            self.tokens,
            counted(self.chunks, "chunk"),
            domains.collect::<Vec<_>>().join(", ")
        ));
        if let Some(overlap) = &self.overlap {
            let with = overlap.with.join(", ");
            lines.push(format!("overlap with {with}: {:.3} % of the runs of 13 words", overlap.share * 100.0));
        }
        lines
    }
}

impl SourceReport {
    fn line(&self) -> String {
        let mut line = self.name.clone();
        if let Some(split) = self.split {
            line += &format!(" ({split})");
        }
        line += &format!(": {}", counted(self.samples, "sample"));
        if self.chats > 0 {
            line += &format!(" ({})", counted(self.chats, "conversation"));
        }
        line += &format!(", {} characters", self.characters);
        if let (Some(tokens), Some(chunks)) = (self.tokens, self.chunks) {
            line += &format!(", {tokens} tokens, {}", counted(chunks, "chunk"));
        }
        line
    }
}

/// A number with its noun.
fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn source(corpus: &Corpus, part: &Part, counts: Option<(usize, usize)>) -> SourceReport {
    let range = match (part.pieces.first(), part.pieces.last()) {
        (Some(first), Some(last)) => first.range.start..last.range.end,
        _ => 0..0,
    };
    SourceReport {
        name: part.name.clone(),
        split: part.split,
        licence: part.licence,
        rule: part.rule,
        weight: part.weight,
        samples: part.samples,
        chats: part.chats,
        duplicates: part.duplicates,
        characters: part.texts(corpus).map(|text| text.chars().count()).sum(),
        sha256: sha256_hex(&corpus.text.as_bytes()[range]),
        tokens: counts.map(|(tokens, _)| tokens),
        chunks: counts.map(|(_, chunks)| chunks),
    }
}

/// Kinds of text by share of the characters. A conversation is judged as a whole, other text paragraph by paragraph.
fn domains(corpus: &Corpus) -> Vec<(&'static str, f64)> {
    let mut counts = [0usize; DOMAINS.len() + 1];
    let mut count = |text: &str| counts[domain(text)] += text.chars().count();
    for part in &corpus.parts {
        for (piece, text) in part.pieces.iter().zip(part.texts(corpus)) {
            match piece.chat {
                true => count(text),
                false => paragraphs(text).iter().for_each(|paragraph| count(paragraph)),
            }
        }
    }
    let total = counts.iter().sum::<usize>().max(1) as f64;
    let names = DOMAINS.iter().map(|(name, _)| *name).chain([OTHER]);
    names.zip(counts).map(|(name, characters)| (name, characters as f64 / total)).collect()
}

fn domain(text: &str) -> usize {
    let text = text.to_lowercase();
    DOMAINS.iter().position(|(_, words)| words.iter().any(|word| text.contains(word))).unwrap_or(DOMAINS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_kind_that_fits_is_taken() {
        let name = |text: &str| DOMAINS.get(domain(text)).map_or(OTHER, |(name, _)| *name);
        assert_eq!(name("fn main() { println!(\"proof\") }"), "code");
        assert_eq!(name("The experiment proves the theorem."), "scientific");
        assert_eq!(name("Hello, please solve for x."), "conversational");
        assert_eq!(name("The Lemma follows."), "mathematical");
        assert_eq!(name("A quiet day at the sea."), OTHER);
    }

    #[test]
    fn shares_are_of_characters_paragraph_by_paragraph() {
        let corpus = Corpus::from_text("a", "The lemma.\n\nA quiet day at the sea....\n\n").unwrap();
        let found = domains(&corpus);
        assert_eq!(found.iter().map(|(_, share)| share).sum::<f64>(), 1.0);
        assert_eq!(found[3], ("mathematical", 10.0 / 36.0));
    }
}
