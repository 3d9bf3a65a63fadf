//! Reads samples out of files: text, JSON, JSON lines and CSV, each also with gzip. Which samples are used is decided in `rules` and `load`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::error::{CorpusError, ModelError};
use crate::{Error, Result};

/// Bytes of a text, after decompression, at most: what the tokeniser takes.
pub(super) const MAX_TEXT: u64 = 1 << 29;
/// Bytes of a line of JSON at most.
pub(super) const MAX_LINE: u64 = 64 << 20;
/// The keys under which a sample's text may lie, in the order in which they are tried.
const TEXT_KEYS: [&str; 4] = ["text", "content", "sample", "prompt"];
/// The keys under which a conversation may lie.
const CHAT_KEYS: [&str; 2] = ["messages", "conversations"];
/// The keys under which a JSON file may keep its samples.
const WRAPPER_KEYS: [&str; 4] = ["samples", "data", "texts", "calibration"];

/// A piece of a source.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Sample {
    /// Its text; of a conversation, once it is rendered.
    pub(super) text: String,
    /// The conversation that it is.
    pub(super) chat: Option<Map<String, Value>>,
    /// Its line in the file, counted from 1.
    pub(super) line: Option<usize>,
}

impl Sample {
    pub(super) fn text(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// One text.
    Text,
    /// A JSON array of samples, or an object with one.
    Json { column: Option<String> },
    /// A JSON sample a line.
    JsonLines { column: Option<String> },
    /// CSV whose first line names the columns.
    CsvNamed { column: String },
    /// CSV without a line of names: these columns, counted from 1, joined with a blank.
    CsvNumbered { columns: Vec<usize> },
}

impl Shape {
    /// What a file holds by its name; `column` is where the user says that the text is.
    pub(super) fn of(path: &Path, column: Option<&str>) -> Self {
        let plain = if is_gzip(path) { path.with_extension("") } else { path.to_path_buf() };
        let extension = plain.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let owned = || column.map(str::to_owned);
        match extension.as_deref() {
            Some("json") => Shape::Json { column: owned() },
            Some("jsonl" | "ndjson") => Shape::JsonLines { column: owned() },
            Some("csv") => match column.and_then(numbers) {
                Some(columns) => Shape::CsvNumbered { columns },
                None => Shape::CsvNamed { column: column.unwrap_or("text").to_owned() },
            },
            _ => Shape::Text,
        }
    }
}

/// Reads `2` or `2+3`.
fn numbers(column: &str) -> Option<Vec<usize>> {
    column.split('+').map(|part| part.parse().ok().filter(|n| *n > 0)).collect()
}

fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"))
}

/// Reads a whole text.
///
/// # Errors
/// If it cannot be read, is damaged, too large or not UTF-8.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let mut input = open(path)?.take(MAX_TEXT + 1);
    input.read_to_end(&mut bytes).map_err(|error| reading(path, error))?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(CorpusError::TooLarge { name: path.display().to_string(), limit: MAX_TEXT }.into());
    }
    String::from_utf8(bytes).map_err(|error| not_utf8(path, None, error.utf8_error().valid_up_to()))
}

/// Reads samples, one after the other, until `take` has enough. A file of one text is none of this function's.
///
/// # Errors
/// If it cannot be read or is not what its name says, and what `take` refuses.
pub(super) fn read_samples(
    path: &Path,
    shape: &Shape,
    take: &mut dyn FnMut(Sample) -> Result<ControlFlow<()>>,
) -> Result<()> {
    match shape {
        Shape::Text => take(Sample::text(read_text(path)?)).map(|_| ()),
        Shape::Json { column } => read_json(path, column.as_deref(), take),
        Shape::JsonLines { column } => {
            let mut lines = open(path)?;
            json_lines(path, &mut lines, column.as_deref(), take)
        }
        Shape::CsvNamed { .. } | Shape::CsvNumbered { .. } => read_csv(path, shape, take),
    }
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(Error::io(path, "read"))?);
    Ok(if is_gzip(path) { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) })
}

fn reading(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as K;
    match error.kind() {
        K::UnexpectedEof if is_gzip(path) => damaged(path, "the gzip stream is cut off".into()),
        K::InvalidData | K::InvalidInput if is_gzip(path) => damaged(path, format!("no sound gzip stream: {error}")),
        _ => Error::io(path, "read")(error),
    }
}

fn damaged(path: &Path, what: String) -> Error {
    CorpusError::Compressed { path: path.to_path_buf(), what }.into()
}

fn not_utf8(path: &Path, line: Option<usize>, byte: usize) -> Error {
    bad(path, line, format!("not UTF-8 text (byte {byte})"))
}

pub(super) fn bad(path: &Path, line: Option<usize>, what: String) -> Error {
    ModelError::CalibrationFormat { path: path.to_path_buf(), line, what }.into()
}

/// Reads samples from lines of JSON; `path` is for messages.
pub(super) fn json_lines(
    path: &Path,
    input: &mut dyn BufRead,
    column: Option<&str>,
    take: &mut dyn FnMut(Sample) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let read = input.take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(|error| reading(path, error))?;
        if read == 0 {
            break;
        }
        if read as u64 > MAX_LINE {
            return Err(bad(path, Some(number), format!("a line of more than {MAX_LINE} bytes")));
        }
        let line = std::str::from_utf8(&bytes).map_err(|error| not_utf8(path, Some(number), error.valid_up_to()))?;
        let line = if number == 1 { line.trim_start_matches('\u{feff}') } else { line };
        if line.trim().is_empty() {
            continue;
        }
        let sample = serde_json::from_str(line).map_err(|e| e.to_string()).and_then(|value| sample(value, column));
        let sample = sample.map_err(|what| bad(path, Some(number), format!("{what}; expected {EXPECTED}")))?;
        if take(Sample { line: Some(number), ..sample })?.is_break() {
            break;
        }
    }
    Ok(())
}

const EXPECTED: &str = "a string or an object with \"text\" or \"messages\"";

fn read_json(path: &Path, column: Option<&str>, take: &mut dyn FnMut(Sample) -> Result<ControlFlow<()>>) -> Result<()> {
    let text = read_text(path)?;
    let text = text.trim_start_matches('\u{feff}');
    let expected =
        |what: String| format!("{what}; expected an array of strings or of objects with \"text\" or \"messages\"");
    let value = serde_json::from_str(text).map_err(|e| bad(path, Some(e.line()), expected(e.to_string())))?;
    let items = match value {
        Value::Array(items) => Some(items),
        Value::Object(mut object) => WRAPPER_KEYS.iter().find_map(|key| match object.remove(*key) {
            Some(Value::Array(items)) => Some(items),
            _ => None,
        }),
        _ => None,
    };
    let items = items.ok_or_else(|| bad(path, None, expected("no array of samples".into())))?;
    for (index, item) in items.into_iter().enumerate() {
        let sample =
            sample(item, column).map_err(|what| bad(path, None, expected(format!("sample {}: {what}", index + 1))))?;
        if take(sample)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// Makes a sample of a JSON value, or says what is wrong with it.
fn sample(value: Value, column: Option<&str>) -> Result<Sample, String> {
    let nothing = || match column {
        Some(column) => format!("neither a string nor an object with a string under \"{column}\""),
        None => "neither a string nor an object with a string under \"text\"".to_owned(),
    };
    let mut object = match value {
        Value::String(text) => return Ok(Sample::text(text)),
        Value::Object(object) => object,
        _ => return Err(nothing()),
    };
    if column.is_none() && CHAT_KEYS.iter().any(|key| object.get(*key).is_some_and(Value::is_array)) {
        return Ok(Sample { chat: Some(object), ..Sample::default() });
    }
    let keys: &[&str] = column.as_slice();
    let keys = if keys.is_empty() { &TEXT_KEYS[..] } else { keys };
    let found = keys.iter().find_map(|key| match object.remove(*key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    });
    found.map(Sample::text).ok_or_else(nothing)
}

/// The messages of a conversation.
pub(super) fn messages(chat: &Map<String, Value>) -> &[Value] {
    CHAT_KEYS.iter().find_map(|key| chat.get(*key)).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn read_csv(path: &Path, shape: &Shape, take: &mut dyn FnMut(Sample) -> Result<ControlFlow<()>>) -> Result<()> {
    let input = open(path)?.take(MAX_TEXT);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(input);
    let mut columns = match shape {
        Shape::CsvNumbered { columns } => columns.clone(),
        _ => Vec::new(),
    };
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|error| csv_error(path, error))? {
        let line = record.position().map(|p| p.line() as usize);
        if let (true, Shape::CsvNamed { column }) = (columns.is_empty(), shape) {
            columns = vec![named_column(path, &record, column)?];
            continue;
        }
        let cells: Option<Vec<&str>> = columns.iter().map(|n| record.get(n - 1)).collect();
        let Some(cells) = cells else {
            return Err(bad(path, line, format!("{} columns, too few", record.len())));
        };
        if take(Sample { line, ..Sample::text(cells.join(" ")) })?.is_break() {
            break;
        }
    }
    Ok(())
}

fn named_column(path: &Path, names: &csv::StringRecord, column: &str) -> Result<usize> {
    let trimmed = |name: &str| name.trim_start_matches('\u{feff}').trim().to_owned();
    let found: Vec<String> = names.iter().map(trimmed).collect();
    let shortened = || found.iter().map(|name| name.chars().take(40).collect()).take(12).collect();
    found.iter().position(|name| name == column).map(|at| at + 1).ok_or_else(|| {
        CorpusError::Column { path: path.to_path_buf(), column: column.to_owned(), found: shortened() }.into()
    })
}

fn csv_error(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map(|p| p.line() as usize);
    match error.into_kind() {
        csv::ErrorKind::Io(error) => reading(path, error),
        csv::ErrorKind::Utf8 { err, .. } => not_utf8(path, line, err.valid_up_to()),
        other => bad(path, line, format!("{other:?}")),
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
