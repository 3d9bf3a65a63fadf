//! What a user calls a source: a data set or a file, with a sampling rule and a weight if they say so.

use std::path::{Path, PathBuf};

use super::catalogue::{CATALOGUE, Dataset, find};
use super::rules::Rule;
use crate::error::CorpusError;
use crate::{Error, Result};

/// A source of text.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// Where it comes from.
    pub place: Place,
    /// How it is sampled; `None` takes what is usual for the source.
    pub rule: Option<Rule>,
    /// Its share of the chunks, relative to the others.
    pub weight: Option<f64>,
}

/// Where a source comes from.
#[derive(Debug, Clone)]
pub enum Place {
    /// A data set of the catalogue.
    Dataset(&'static Dataset),
    /// A file.
    File(PathBuf),
}

impl SourceSpec {
    /// Reads `SOURCE[@RULE][:WEIGHT]`. What is a file as it stands is that file, whatever signs its name has; otherwise a weight and a rule are
    /// taken off the end, and what is left is a data set if one has that name.
    ///
    /// # Errors
    /// [`CorpusError::UnknownSource`] for a word that is neither a file nor a data set; a path without a file is found out when it is read.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(set) = find(text) {
            return Ok(Self { place: Place::Dataset(set), rule: None, weight: None });
        }
        if Path::new(text).exists() {
            return Ok(Self::file(text));
        }
        if let Some((rest, weight)) = text.rsplit_once(':')
            && let Some(weight) = weight.parse().ok().filter(|w: &f64| w.is_finite() && *w > 0.0)
        {
            return Ok(Self { weight: Some(weight), ..Self::parse(rest)? });
        }
        if let Some((rest, rule)) = text.rsplit_once('@')
            && let Ok(rule) = rule.parse()
        {
            return Ok(Self { rule: Some(rule), ..Self::parse(rest)? });
        }
        if text.contains(['/', '\\', '.']) {
            return Ok(Self::file(text));
        }
        Err(CorpusError::UnknownSource { name: text.to_owned(), known: CATALOGUE.iter().map(|set| set.name).collect() }
            .into())
    }

    /// A file with nothing else said.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::File(path.into()), rule: None, weight: None }
    }

    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            Place::Dataset(_) => None,
        }
    }

    /// The source without its weight, as the user would write it.
    pub fn name(&self) -> String {
        let place = match &self.place {
            Place::Dataset(set) => set.name.to_owned(),
            Place::File(path) => path.display().to_string(),
        };
        self.rule.map_or(place.clone(), |rule| format!("{place}@{}", rule.name()))
    }
}

/// Checks that all sources have weights, or none.
pub(super) fn check_weights(specs: &[SourceSpec]) -> Result<()> {
    let with = specs.iter().find(|spec| spec.weight.is_some());
    let without = specs.iter().find(|spec| spec.weight.is_none());
    match (with, without) {
        (Some(with), Some(without)) => {
            Err(Error::from(CorpusError::WeightMissing { without: without.name(), with: with.name() }))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, Option<f64>) {
        let spec = SourceSpec::parse(text).unwrap();
        (spec.name(), spec.weight)
    }

    #[test]
    fn names_rules_and_weights_are_told_apart() {
        assert_eq!(parts("wikitext"), ("wikitext2".into(), None));
        assert_eq!(parts("c4@texts:0.25"), ("c4@texts".into(), Some(0.25)));
        assert_eq!(parts("notes.txt:2"), ("notes.txt".into(), Some(2.0)));
        assert_eq!(parts("./v3"), ("./v3".into(), None));
        assert_eq!(parts("a.txt@home"), ("a.txt@home".into(), None));
        assert_eq!(parts("a.txt:-1"), ("a.txt:-1".into(), None));
        assert_eq!(parts("a.txt:nan"), ("a.txt:nan".into(), None));
    }

    #[test]
    fn a_file_that_exists_is_taken_as_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd@raw:0.5");
        std::fs::write(&path, "x").unwrap();
        let text = path.to_str().unwrap();
        assert_eq!(parts(text), (text.to_owned(), None));
        assert_eq!(parts(&format!("{text}:3")), (text.to_owned(), Some(3.0)));
    }

    #[test]
    fn a_word_that_is_nothing_is_refused_at_once() {
        let error = SourceSpec::parse("wikitext3:0.5").unwrap_err();
        assert_eq!(error.to_string(), "`wikitext3`: neither a file nor a data set");
        assert!(error.hint().unwrap().contains("ag-news"));
    }
}
