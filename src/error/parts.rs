//! What can be wrong with the parts of work that was divided among machines.

use std::path::PathBuf;

use super::Class;

/// Parts cannot be put together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartsError {
    /// A file is no part, or no sound one.
    #[error("{}: not a usable part: {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file holds only a part of a model, where all of it is needed.
    #[error("{}: it holds only part {shard} of a model", path.display())]
    Alone {
        /// The file.
        path: PathBuf,
        /// The part.
        shard: String,
    },
    /// A file is of another kind than the first.
    #[error("{}: expected {expected} as in {}, got {found}", path.display(), first.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The first file.
        first: PathBuf,
        /// The kind of the first.
        expected: &'static str,
        /// The kind of this.
        found: &'static str,
    },
    /// A part is of other work than the first.
    #[error("{}: this part is of another {what}: expected {expected} as in {}, got {found}", path.display(), first.display())]
    Another {
        /// The file.
        path: PathBuf,
        /// The first file.
        first: PathBuf,
        /// What differs.
        what: Box<str>,
        /// What the first has.
        expected: Box<str>,
        /// What this one has.
        found: Box<str>,
    },
    /// A part is given twice.
    #[error("{}: part {shard} is {} too", path.display(), other.display())]
    Double {
        /// The file.
        path: PathBuf,
        /// The other file.
        other: PathBuf,
        /// The part.
        shard: String,
    },
    /// Parts lack.
    #[error("{}: expected {count} parts, got {found}: missing {missing}", first.display())]
    Missing {
        /// The first file.
        first: PathBuf,
        /// Parts in all.
        count: u32,
        /// Parts that were given.
        found: usize,
        /// Those that were not.
        missing: String,
    },
}

impl PartsError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        Class::Refused
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Unusable { .. } => "make it again with --shard",
            Self::Alone { .. } => "put all parts together with `tcq4 merge`",
            Self::Kind { .. } => "put together files of one kind",
            Self::Another { .. } => "make all parts with one version, from one model, with the same options",
            Self::Double { .. } => "give each part once",
            Self::Missing { .. } => "make these with --shard, and give all parts to one `tcq4 merge`",
        };
        Some(text.into())
    }
}

/// Names the parts that are not among `found` (counted from 0): the first few of them.
pub(crate) fn missing(found: &[u32], count: u32) -> String {
    const NAMED: usize = 8;
    let lacking: Vec<String> =
        (0..count).filter(|index| !found.contains(index)).map(|index| format!("{}/{count}", index + 1)).collect();
    let named = lacking.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if lacking.len() > NAMED { format!("{named}, .. ({} in all)", lacking.len()) } else { named }
}
