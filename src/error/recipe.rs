//! What can be wrong with a recipe.

use std::path::PathBuf;

use super::Class;

/// A recipe that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file is no recipe: broken TOML, an unknown key, a value that the key does not take.
    #[error("{}: line {line}: {}{problem}", path.display(), key.as_ref().map(|key| format!("`{key}`: ")).unwrap_or_default())]
    Invalid {
        /// The recipe file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key on that line, where there is one.
        key: Option<String>,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// The file is larger than any recipe.
    #[error("{}: {bytes} bytes are too many for a recipe, at most {most} are read", path.display())]
    TooLarge {
        /// The recipe file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        most: u64,
    },
}

impl RecipeError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        Class::Refused
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some("`tcq4 convert MODEL --print-recipe` shows every key with its value".into())
    }
}
