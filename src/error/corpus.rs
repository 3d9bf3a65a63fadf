//! What can be wrong with a text, a data set, or the way to it.

use std::path::PathBuf;

use super::Class;

/// A text that cannot be had, or is not what it should be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// A source is neither a file nor a data set.
    #[error("`{name}`: neither a file nor a data set")]
    UnknownSource {
        /// What the user wrote.
        name: String,
        /// The data sets that there are.
        known: Vec<&'static str>,
    },
    /// Some sources have weights and some have none.
    #[error("`{without}` has no weight, but `{with}` has one")]
    WeightMissing {
        /// A source without a weight.
        without: String,
        /// A source with one.
        with: String,
    },
    /// A data set is not on this machine, and may not be fetched.
    #[error("{name}: not on this machine, and {why}")]
    NotCached {
        /// The data set and its part.
        name: String,
        /// Why it is not fetched.
        why: &'static str,
        /// Where it can be fetched by hand.
        url: String,
        /// Where it belongs.
        path: PathBuf,
    },
    /// A server answered with an error.
    #[error("{url}: the server answered {status}")]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Where a file that is fetched by hand belongs.
        path: PathBuf,
    },
    /// A server could not be reached, or the connection broke, as often as it was tried.
    #[error("{url}: {what}")]
    Transport {
        /// The address.
        url: String,
        /// What the network said.
        what: String,
        /// Where a file that is fetched by hand belongs.
        path: PathBuf,
    },
    /// A file is larger than it may be.
    #[error("{name}: more than {limit} bytes")]
    TooLarge {
        /// The file or address.
        name: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// A file has other bytes than it should.
    #[error("{}: {algorithm} is {found}, expected {expected}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The hash function.
        algorithm: &'static str,
        /// The hash of the right bytes.
        expected: String,
        /// The hash of these bytes.
        found: String,
    },
    /// A compressed file is damaged or cut off.
    #[error("{}: {what}", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A CSV file has no such column.
    #[error("{}: no column `{column}`; the first line has: {}", path.display(), found.join(", "))]
    Column {
        /// The file.
        path: PathBuf,
        /// The column that was looked for.
        column: String,
        /// The columns that there are.
        found: Vec<String>,
    },
    /// Chat samples need a template that is not there.
    #[error("{}{}: a chat sample, but {model} has no chat template", path.display(), at(*line))]
    NoTemplate {
        /// The file with the sample.
        path: PathBuf,
        /// The line of the sample, counted from 1.
        line: Option<usize>,
        /// The model, or what stands for it.
        model: String,
    },
    /// A chat template does not accept a sample, or makes no sense.
    #[error("{}{}: {model}: {what}", path.display(), at(*line))]
    Template {
        /// The file with the sample.
        path: PathBuf,
        /// The line of the sample, counted from 1.
        line: Option<usize>,
        /// The model.
        model: String,
        /// What the template engine says.
        what: String,
    },
    /// None of a source's samples can be used.
    #[error("{name}: {what}")]
    NoSamples {
        /// The source.
        name: String,
        /// What they lack.
        what: String,
    },
}

fn at(line: Option<usize>) -> String {
    line.map(|line| format!(":{line}")).unwrap_or_default()
}

impl CorpusError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            CorpusError::Transport { .. } | CorpusError::Status { .. } => Class::Failed,
            CorpusError::WeightMissing { .. } => Class::Usage,
            _ => Class::Refused,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        use CorpusError as E;
        Some(match self {
            E::UnknownSource { known, .. } => {
                format!("data sets: {}; see `tcq4 datasets`", known.join(", "))
            }
            E::WeightMissing { .. } => "give every source a weight, or none: -c a.txt:0.3 -c b.txt:0.7".into(),
            E::NotCached { url, path, .. } => format!("fetch {url} and put it at {}", path.display()),
            E::Status { path, .. } | E::Transport { path, .. } => {
                format!("try again later, or put the file at {}", path.display())
            }
            E::TooLarge { .. } => "use a part of it".into(),
            E::Checksum { path, .. } => format!("remove {} and fetch it again", path.display()),
            E::Compressed { .. } => "fetch it again".into(),
            E::Column { .. } => {
                "name it with --text-column; columns of a file without a first line of names are numbered from 1".into()
            }
            E::NoTemplate { .. } => "use a chat model's file, or samples of plain text".into(),
            E::Template { .. } => "the template decides which roles, and in which order, it accepts".into(),
            E::NoSamples { .. } => "use a longer text, or smaller chunks with --ctx".into(),
        })
    }
}
