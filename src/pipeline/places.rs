//! The names of a job's output on its way: one beside its own until it has passed every gate, and one for what a gate rejects.

use std::fs;
use std::path::{Path, PathBuf};

use super::state::Known;
use crate::error::{PipelineError, Result};

/// All names of one output, in one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// What it is asked for as: `m.gguf`.
    pub output: PathBuf,
    /// Until it has passed: `m.unchecked.gguf`.
    pub unchecked: PathBuf,
    /// If it does not pass: `m.rejected.gguf`.
    pub rejected: PathBuf,
}

impl Places {
    /// Those of an output. Two outputs that differ have names that differ.
    pub fn of(output: &Path) -> Self {
        let named = |word: &str| {
            let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
            output.with_file_name(match name.strip_suffix(".gguf") {
                Some(stem) => format!("{stem}.{word}.gguf"),
                None => format!("{name}.{word}"),
            })
        };
        Self { output: output.to_path_buf(), unchecked: named("unchecked"), rejected: named("rejected") }
    }

    /// All of them.
    pub fn all(&self) -> [&Path; 3] {
        [&self.output, &self.unchecked, &self.rejected]
    }

    /// Where `convert --sequential` keeps what it has done of an output.
    pub fn partial(&self) -> PathBuf {
        let mut path = self.unchecked.clone().into_os_string();
        path.push(".partial");
        path.into()
    }

    /// Refuses names under which something lies that this batch did not write. The names beside the output's own are its jobs' from the first one on.
    ///
    /// # Errors
    /// [`PipelineError::Foreign`].
    pub fn check(&self, known: Option<&Known>) -> Result<()> {
        let taken = match known {
            Some(known) if known.owns(&self.output) => None,
            Some(_) => [&*self.output].into_iter().find(|path| fs::symlink_metadata(path).is_ok()),
            None => self.all().into_iter().find(|path| fs::symlink_metadata(path).is_ok()),
        };
        taken.map_or(Ok(()), |path| Err(PipelineError::Foreign { path: path.to_path_buf() }.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_outputs_share_a_name() {
        let places = Places::of(Path::new("out/m-3.1.gguf"));
        assert_eq!(places.unchecked, Path::new("out/m-3.1.unchecked.gguf"));
        assert_eq!(places.rejected, Path::new("out/m-3.1.rejected.gguf"));
        assert_eq!(places.partial(), Path::new("out/m-3.1.unchecked.gguf.partial"));
        let names =
            ["llama-3.1", "llama-3.2", "llama-3", "llama-3.gguf", "llama"].map(|name| Places::of(Path::new(name)));
        let all: std::collections::BTreeSet<&Path> = names.iter().flat_map(Places::all).collect();
        assert_eq!(all.len(), 15);
    }
}
