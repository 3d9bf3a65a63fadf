//! Sampling rules: which pieces of a source become samples. How tokens are cut into chunks is decided in `chunks`.

use std::str::FromStr;

use super::read::Sample;
use crate::util::random;

/// Texts of this many characters or fewer are left out by [`Rule::Texts`], blanks at the ends not counted.
pub const SHORT_TEXT: usize = 100;
/// Texts that [`Rule::Texts`] takes at most.
pub const MAX_TEXTS: usize = 2000;
/// Characters that a paragraph of a data set needs.
const DATASET_PARAGRAPH: usize = 100;
/// Characters that a paragraph of a user's file needs.
const FILE_PARAGRAPH: usize = 50;
/// Characters that a text needs for each token of a window: shorter ones are not worth tokenising.
const CHARACTERS_A_TOKEN: usize = 3;
/// Documents looked at for each window, because some turn out too short once they are tokenised.
const DOCUMENTS_A_WINDOW: usize = 3;

/// How a source is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Everything as it stands: a text verbatim, samples all of them.
    Raw,
    /// A text without its blank lines, to be cut into chunks (the usual WikiText-2 rule of GPTQ and AWQ code).
    Chunks,
    /// The first lines that are not blank, as many as chunks are asked for.
    Simple,
    /// Lines or samples of more than [`SHORT_TEXT`] characters; a random [`MAX_TEXTS`] of them where there are more.
    Texts,
    /// Pieces between blank lines, of at least 100 characters in a data set and 50 in a file.
    Paragraphs,
    /// One random window of a chunk's length from each long enough text (the usual C4 rule).
    Windows,
}

/// Every rule with its name.
const NAMES: [(Rule, &str); 6] = [
    (Rule::Raw, "raw"),
    (Rule::Chunks, "chunks"),
    (Rule::Simple, "simple"),
    (Rule::Texts, "texts"),
    (Rule::Paragraphs, "paragraphs"),
    (Rule::Windows, "windows"),
];

impl Rule {
    /// The name that the user writes.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(rule, _)| *rule == self).map_or("raw", |(_, name)| name)
    }
}

impl FromStr for Rule {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(rule, _)| *rule).ok_or(())
    }
}

/// What the rules depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Chunks wanted.
    pub(super) chunks: usize,
    /// Tokens of a chunk.
    pub(super) ctx: usize,
    /// The seed of random choices.
    pub(super) seed: u64,
}

impl Rule {
    /// Whether a sample is worth keeping while a stream is read.
    pub(super) fn wants(self, text: &str, sizes: &Sizes) -> bool {
        match self {
            Rule::Texts => text.trim().chars().count() > SHORT_TEXT,
            Rule::Windows => text.chars().count() >= CHARACTERS_A_TOKEN * sizes.ctx,
            _ => true,
        }
    }

    /// How many wanted samples of a stream are enough.
    pub(super) fn enough(self, sizes: &Sizes) -> usize {
        match self {
            Rule::Windows => DOCUMENTS_A_WINDOW * sizes.chunks,
            _ => MAX_TEXTS,
        }
    }

    /// What the wanted samples of a stream depend on, for a file name.
    pub(super) fn tag(self, sizes: &Sizes) -> String {
        let least = match self {
            Rule::Windows => CHARACTERS_A_TOKEN * sizes.ctx,
            Rule::Texts => SHORT_TEXT + 1,
            _ => 0,
        };
        format!("min{least}-n{}", self.enough(sizes))
    }

    /// Makes samples of a text that has none of its own.
    pub(super) fn divide(self, text: String, is_dataset: bool, sizes: &Sizes) -> Vec<Sample> {
        match self {
            Rule::Raw => vec![Sample::text(text)],
            Rule::Chunks => vec![Sample::text(lines(&text).collect())],
            Rule::Simple => lines(&text).take(sizes.chunks).map(whole_line).collect(),
            Rule::Texts | Rule::Windows => self.select(lines(&text).map(whole_line).collect(), sizes),
            Rule::Paragraphs => {
                let least = if is_dataset { DATASET_PARAGRAPH } else { FILE_PARAGRAPH };
                paragraphs(&text).into_iter().filter(|p| p.chars().count() >= least).map(Sample::text).collect()
            }
        }
    }

    /// Chooses among samples, keeping their order.
    pub(super) fn select(self, mut samples: Vec<Sample>, sizes: &Sizes) -> Vec<Sample> {
        samples.retain(|sample| self.wants(&sample.text, sizes));
        match self {
            Rule::Simple => samples.truncate(sizes.chunks),
            Rule::Texts if samples.len() > MAX_TEXTS => {
                let mut taken = random::shuffled(samples.len(), "sampled texts", sizes.seed);
                taken.truncate(MAX_TEXTS);
                taken.sort_unstable();
                let mut all: Vec<Option<Sample>> = samples.into_iter().map(Some).collect();
                samples = taken.into_iter().filter_map(|i| all[i].take()).collect();
            }
            _ => {}
        }
        samples
    }
}

/// The lines that are not blank, each with its line break.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter(|line| !line.trim().is_empty())
}

fn whole_line(line: &str) -> Sample {
    Sample::text(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// The runs of lines between blank lines, joined as they stand.
pub(super) fn paragraphs(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for line in text.lines() {
        match (line.trim().is_empty(), found.last_mut()) {
            (true, Some(last)) if !last.is_empty() => found.push(String::new()),
            (false, Some(last)) => {
                if !last.is_empty() {
                    last.push('\n');
                }
                last.push_str(line);
            }
            _ => {}
        }
    }
    found.retain(|paragraph| !paragraph.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { chunks: 2, ctx: 4, seed: 42 };

    fn divided(rule: Rule, text: &str) -> Vec<String> {
        rule.divide(text.to_owned(), false, &SIZES).into_iter().map(|sample| sample.text).collect()
    }

    #[test]
    fn a_text_is_divided_as_each_rule_says() {
        let text = " = Title = \n \n\nfirst line\nsecond line\r\n  \nthird\n";
        assert_eq!(divided(Rule::Raw, text), [text]);
        assert_eq!(divided(Rule::Chunks, text), [" = Title = \nfirst line\nsecond line\r\nthird\n"]);
        assert_eq!(divided(Rule::Simple, text), [" = Title = ", "first line"]);
        assert_eq!(divided(Rule::Windows, "twelve chars\nshort\n"), ["twelve chars"]);
        assert_eq!(paragraphs(text), [" = Title = ", "first line\nsecond line", "third"]);
        assert_eq!(paragraphs("\n\n"), Vec::<String>::new());
    }

    #[test]
    fn lengths_are_counted_in_characters_and_borders_are_those_of_the_rules() {
        let ends = |n: usize| format!("  {}  ", "é".repeat(n));
        assert_eq!(divided(Rule::Texts, &format!("{}\n{}\n", ends(100), ends(101))), [ends(101)]);
        let (short, long) = ("é".repeat(49), "é".repeat(50));
        assert_eq!(divided(Rule::Paragraphs, &format!("{short}\n\n{long}\n")), std::slice::from_ref(&long));
        assert!(Rule::Paragraphs.divide(long, true, &SIZES).is_empty());
    }

    #[test]
    fn rules_that_want_other_samples_of_a_stream_keep_them_under_other_names() {
        let tags = [Rule::Raw, Rule::Texts, Rule::Windows].map(|rule| rule.tag(&SIZES));
        assert_eq!(tags, ["min0-n2000", "min101-n2000", "min12-n6"]);
        let longer = Sizes { ctx: 8, chunks: 3, ..SIZES };
        assert_eq!(Rule::Windows.tag(&longer), "min24-n9");
    }

    #[test]
    fn too_many_texts_are_sampled_by_the_seed_in_text_order() {
        let samples = || (0..MAX_TEXTS + 500).map(|i| Sample::text(format!("{i:0>120}"))).collect::<Vec<_>>();
        let taken = Rule::Texts.select(samples(), &SIZES);
        assert_eq!(taken.len(), MAX_TEXTS);
        assert!(taken.is_sorted_by(|a, b| a.text < b.text));
        assert_eq!(taken, Rule::Texts.select(samples(), &SIZES));
        assert_ne!(taken, Rule::Texts.select(samples(), &Sizes { seed: 43, ..SIZES }));
    }
}
