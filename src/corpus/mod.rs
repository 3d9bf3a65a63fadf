//! Calibration texts: plain text, JSON and JSONL files joined to one text. What becomes of the text is decided in `chunks`.
//!
//! A plain text file is one sample, taken verbatim, so that a run over one file sees the very text that llama-imatrix sees. A `.json`
//! file is an array, a `.jsonl` file a line each, of strings or of objects with a string under "text". Samples that repeat an earlier one byte for byte are
//! dropped and counted, empty ones too. Samples are joined with a blank line between them.

pub mod chunks;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use crate::error::ModelError;
use crate::{Error, Result};

/// What stands between two samples.
const SEPARATOR: &str = "\n\n";

/// A calibration text and where it came from.
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
    seen: HashSet<u128>,
}

impl Corpus {
    /// Reads and joins `paths`, in order.
    ///
    /// # Errors
    /// If a file cannot be read or is not what its name says, and if there is no text in all of them.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut corpus = Self::default();
        for path in paths {
            corpus.add_file(path)?;
        }
        corpus.checked()
    }

    /// A corpus of one text that is no file, for instance the one that ships with the binary.
    ///
    /// # Errors
    /// If it is empty.
    pub fn from_text(name: &str, text: &str) -> Result<Self> {
        let mut corpus = Self { sources: vec![name.to_owned()], ..Self::default() };
        corpus.add(text);
        corpus.checked()
    }

    /// A short hash of the text.
    pub fn hash(&self) -> String {
        format!("{:032x}", xxh3_128(self.text.as_bytes()))
    }

    fn checked(self) -> Result<Self> {
        if self.samples == 0 {
            return Err(ModelError::CalibrationEmpty { sources: self.sources }.into());
        }
        Ok(self)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                return Err(bad(path, None, format!("not UTF-8 text (byte {at})")));
            }
        };
        self.sources.push(path.display().to_string());
        match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("json") => self.add_json(path, &text),
            Some("jsonl") => self.add_jsonl(path, &text),
            _ => {
                self.add(&text);
                Ok(())
            }
        }
    }

    fn add_json(&mut self, path: &Path, text: &str) -> Result<()> {
        let samples: Vec<Sample> = serde_json::from_str(text).map_err(|e| {
            bad(path, Some(e.line()), format!("{e}; expected an array of strings or of objects with \"text\""))
        })?;
        for sample in &samples {
            self.add(sample.text());
        }
        Ok(())
    }

    fn add_jsonl(&mut self, path: &Path, text: &str) -> Result<()> {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let sample: Sample = serde_json::from_str(line).map_err(|e| {
                bad(path, Some(number + 1), format!("{e}; expected a string or an object with \"text\""))
            })?;
            self.add(sample.text());
        }
        Ok(())
    }

    fn add(&mut self, sample: &str) {
        if sample.trim().is_empty() {
            return;
        }
        if !self.seen.insert(xxh3_128(sample.as_bytes())) {
            self.duplicates += 1;
            return;
        }
        if self.samples > 0 {
            self.text.push_str(SEPARATOR);
        }
        self.text.push_str(sample);
        self.samples += 1;
    }
}

#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "neither a string nor an object with a string under \"text\"")]
enum Sample {
    Text(String),
    Object { text: String },
}

impl Sample {
    fn text(&self) -> &str {
        match self {
            Sample::Text(text) | Sample::Object { text } => text,
        }
    }
}

fn bad(path: &Path, line: Option<usize>, what: String) -> Error {
    ModelError::CalibrationFormat { path: path.to_path_buf(), line, what }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(files: &[(&str, &str)]) -> Result<Corpus> {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = files.iter().map(|(name, _)| dir.path().join(name)).collect();
        for (path, (_, text)) in paths.iter().zip(files) {
            fs::write(path, text).unwrap();
        }
        Corpus::read(&paths)
    }

    #[test]
    fn one_text_file_is_taken_verbatim() {
        let text = "\n = Title = \n\n\nline\r\nline\n";
        assert_eq!(corpus(&[("a.raw", text)]).unwrap().text, text);
    }

    #[test]
    fn json_and_jsonl_give_samples_and_duplicates_are_counted() {
        let all = corpus(&[
            ("a.json", r#"["one", {"text": "two", "id": 3}, "one", " "]"#),
            ("b.jsonl", "\"two\"\n\n{\"text\": \"three\"}\n"),
            ("c.txt", "four"),
            ("d.txt", "four"),
        ])
        .unwrap();
        assert_eq!(all.text, "one\n\ntwo\n\nthree\n\nfour");
        assert_eq!((all.samples, all.duplicates), (4, 3));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let message = |files: &[(&str, &str)]| corpus(files).unwrap_err().to_string();
        assert!(message(&[("a.jsonl", "\"x\"\n{\"txt\": 1}")]).contains("a.jsonl:2: neither a string"));
        assert!(message(&[("a.json", "{}")]).contains("expected an array"));
        assert!(message(&[("a.txt", " \n")]).contains("no text"));
        assert!(message(&[("a.txt", "")]).contains("a.txt"));
    }
}
