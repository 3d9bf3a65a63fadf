//! What can be wrong with a batch, or with one of its jobs.

use std::path::PathBuf;

use super::Class;

/// A batch that cannot be run, or a job of one that failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The file describes no batch: broken TOML, an unknown key, a value that the key does not take.
    #[error("{}: line {line}: {}{problem}", path.display(), key.as_ref().map(|key| format!("`{key}`: ")).unwrap_or_default())]
    Invalid {
        /// The batch file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key on that line, where there is one.
        key: Option<String>,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// The file is larger than any batch.
    #[error("{}: {bytes} bytes are too many for a batch file, at most {most} are read", path.display())]
    TooLarge {
        /// The batch file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// A preset is neither built in nor defined in the file.
    #[error("preset `{name}` is neither fast, balanced or best nor a table [preset.{name}]")]
    UnknownPreset {
        /// What the file says.
        name: String,
    },
    /// A template has a placeholder that means nothing.
    #[error("output `{template}`: unknown placeholder {{{placeholder}}}")]
    Placeholder {
        /// The template.
        template: String,
        /// What stands in braces.
        placeholder: String,
    },
    /// Two jobs would write one file.
    #[error("{}: the output of two jobs, {first} and {second}", output.display())]
    SameOutput {
        /// The file.
        output: PathBuf,
        /// A job.
        first: String,
        /// Another.
        second: String,
    },
    /// A pattern of models is no pattern.
    #[error("`{pattern}`: {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing lies where a model should be.
    #[error("`{pattern}`: no file matches")]
    NoModel {
        /// The path or pattern.
        pattern: String,
    },
    /// An output exists that no batch with this state has written.
    #[error("{}: the file exists already, and is not what this batch wrote", path.display())]
    Foreign {
        /// The output.
        path: PathBuf,
    },
    /// What a job wrote is no longer what it was.
    #[error("{}: the file is gone, or changed by somebody else", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A gate that cannot be measured.
    #[error("{model}: `max-kld` is measured on `texts` of [gates], and there are none")]
    NoTexts {
        /// The model as the batch names it.
        model: String,
    },
    /// A model that a plan does not fetch.
    #[error("hf:{repository}: {file} is not here, and a plan fetches nothing")]
    NotFetched {
        /// The repository.
        repository: String,
        /// The file or pattern.
        file: String,
    },
    /// The state of a job cannot be read.
    #[error("{}: no state of a job: {problem}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A job needs more than there is.
    #[error("{what}: {needed} needed, {available} there")]
    Budget {
        /// Memory or disk.
        what: &'static str,
        /// What the job needs, as people write it: `1.2 GiB`.
        needed: String,
        /// What it may have.
        available: String,
    },
    /// The process of a job ended with an error.
    #[error("{message}")]
    Job {
        /// What it said last.
        message: String,
        /// Its exit code.
        code: i32,
        /// Whether a second try may pass.
        transient: bool,
    },
    /// The process of a job was killed.
    #[error("killed by signal {signal}{}", if *.signal == 9 { ", as the system does when memory runs out" } else { "" })]
    Killed {
        /// The signal.
        signal: i32,
    },
    /// The process of a job did not say what it did.
    #[error("the job ended well, but left no record of its work")]
    NoRecord,
    /// Another run of a batch had the job until now.
    #[error("{}: another run is at this job", output.display())]
    Busy {
        /// Its output.
        output: PathBuf,
    },
    /// The hub cannot give a model.
    #[error("hf:{repository}: {problem}")]
    Hub {
        /// The repository.
        repository: String,
        /// What is wrong.
        problem: String,
        /// Whether a second try may pass.
        transient: bool,
    },
    /// A model of the hub is not on this machine, and may not be fetched.
    #[error("hf:{repository}: {missing} of revision {revision} is not in {}, and {why}", cache.display())]
    HubMissing {
        /// The repository.
        repository: String,
        /// The branch, tag or commit.
        revision: String,
        /// The file or pattern.
        missing: String,
        /// The folder of the hub's cache.
        cache: PathBuf,
        /// Why it is not fetched.
        why: &'static str,
    },
}

impl PipelineError {
    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            // What the job's process ended with.
            Self::Job { code, .. } => {
                let of_job = [Class::Refused, Class::Strict].into_iter().find(|class| i32::from(class.code()) == *code);
                of_job.unwrap_or(Class::Failed)
            }
            Self::Killed { .. } | Self::NoRecord | Self::Busy { .. } | Self::Changed { .. } | Self::Hub { .. } => {
                Class::Failed
            }
            _ => Class::Refused,
        }
    }

    /// Whether a second try may pass without anything being changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Job { transient, .. } | Self::Hub { transient, .. } => *transient,
            // The memory killer: alone, the job may fit.
            Self::Killed { signal } => *signal == 9,
            _ => false,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Invalid { .. } | Self::TooLarge { .. } => "the README shows a batch file with every key",
            Self::UnknownPreset { .. } => "add the table, with the keys that `tcq4 convert MODEL --print-recipe` shows",
            Self::Placeholder { .. } => "there are {name}, {stem} and {preset}",
            Self::SameOutput { .. } => {
                "put {name} and {preset} into the template, or give one of the models another name"
            }
            Self::Foreign { .. } => "move it away, or pass --force to replace it",
            Self::Budget { .. } => "raise --memory or --disk, or leave the job to a larger machine",
            Self::HubMissing { .. } => "run once without --offline, or fetch the file with the hub's own tools",
            Self::NoTexts { .. } => {
                "add `texts = [\"evaluation.txt\"]`: files, or data sets that `tcq4 datasets` lists"
            }
            Self::State { .. } => "remove the file; the job is done again",
            _ => return None,
        };
        Some(hint.into())
    }
}
