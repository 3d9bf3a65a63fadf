//! How much of a text also stands in another one: the share of its runs of 13 words, the measure that GPT-3's authors used to find evaluation
//! text in training text (Brown et al. 2020, appendix C). Words are compared in lower case and without punctuation.

use std::collections::HashSet;

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::Corpus;

/// Words of a run.
pub const RUN: usize = 13;
/// From this share on a user should know.
pub const WORTH_A_WARNING: f64 = 0.01;

/// How much of a corpus stands in an evaluation text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overlap {
    /// The evaluation text.
    pub with: Vec<String>,
    /// Runs of words in the corpus.
    pub runs: usize,
    /// Those that the evaluation text has too.
    pub shared: usize,
    /// Their share.
    pub share: f64,
    /// The share of each source.
    pub sources: Vec<f64>,
}

impl Overlap {
    /// Compares a corpus with an evaluation text.
    pub fn measure(corpus: &Corpus, evaluation: &Corpus) -> Self {
        let known: HashSet<u64> = evaluation
            .parts
            .iter()
            .flat_map(|part| part.texts(evaluation))
            .flat_map(|text| runs(text).collect::<Vec<_>>())
            .collect();
        let counts: Vec<(usize, usize)> = corpus
            .parts
            .iter()
            .map(|part| {
                let all = part.texts(corpus).flat_map(|text| runs(text).collect::<Vec<_>>());
                all.fold((0, 0), |(n, shared), run| (n + 1, shared + usize::from(known.contains(&run))))
            })
            .collect();
        let share = |(runs, shared): (usize, usize)| if runs == 0 { 0.0 } else { shared as f64 / runs as f64 };
        let (runs, shared) = counts.iter().fold((0, 0), |(a, b), (n, s)| (a + n, b + s));
        let sources = counts.into_iter().map(share).collect();
        Self { with: evaluation.sources.clone(), runs, shared, share: share((runs, shared)), sources }
    }
}

/// The hashes of all runs of words in a text.
fn runs(text: &str) -> impl Iterator<Item = u64> {
    let words: Vec<u64> = words(text).map(|word| xxh3_64(word.as_bytes())).collect();
    let hash = |run: &[u64]| xxh3_64(bytemuck::cast_slice(run));
    (0..words.len().saturating_sub(RUN - 1)).map(move |at| hash(&words[at..at + RUN]))
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(range: std::ops::Range<usize>) -> String {
        range.map(|i| format!("Word{i}")).collect::<Vec<_>>().join(", ")
    }

    fn overlap(text: &str, evaluation: &str) -> Overlap {
        Overlap::measure(&Corpus::from_text("a", text).unwrap(), &Corpus::from_text("b", evaluation).unwrap())
    }

    #[test]
    fn shared_runs_are_counted() {
        // 100 words make 88 runs; 20 words in common make 8 shared ones.
        let found = overlap(&numbers(0..100), &numbers(80..200).to_uppercase().replace(", ", " - "));
        assert_eq!((found.runs, found.shared), (88, 8));
        assert_eq!(found.share, 8.0 / 88.0);
        assert_eq!(found.sources, [8.0 / 88.0]);
    }

    #[test]
    fn fewer_words_than_a_run_share_nothing() {
        assert_eq!(overlap(&numbers(0..12), &numbers(0..12)).share, 0.0);
        assert_eq!(overlap(&numbers(0..13), &numbers(0..13)).share, 1.0);
        assert_eq!(overlap(&numbers(0..40), &numbers(100..140)).shared, 0);
    }
}
