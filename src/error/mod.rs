//! Errors as values: what was wrong, where (file, tensor, offset), what was expected and what was found.
//!
//! Messages are lower case and name the file first; the remedy is not part of the message but a [`Error::hint`], printed on a line of its own.

mod analysis;
mod compare;
mod convert;
mod corpus;
mod device;
mod eval;
mod export;
mod gguf;
mod llama;
mod mixed;
mod model;
mod moments;
mod ops;
pub(crate) mod parts;
mod pipeline;
mod recipe;
mod report;

use std::io;
use std::path::{Path, PathBuf};

pub use analysis::AnalysisError;
pub use compare::CompareError;
pub use convert::ConvertError;
pub use corpus::CorpusError;
pub use device::DeviceError;
pub use eval::EvalError;
pub use export::ExportError;
pub use gguf::GgufError;
pub use llama::LlamaError;
pub use mixed::MixedError;
pub use model::ModelError;
pub use moments::MomentsError;
pub use ops::OpsError;
pub use parts::PartsError;
pub use pipeline::PipelineError;
pub use recipe::RecipeError;
pub use report::ReportError;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a failure ends the program: the documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The work was begun and failed (exit code 1).
    Failed,
    /// The command line made no sense (exit code 2).
    Usage,
    /// An input was refused before anything was written (exit code 3).
    Refused,
    /// `--strict` refused a substitution (exit code 4).
    Strict,
    /// The user interrupted the work (exit code 130).
    Interrupted,
}

impl Class {
    /// The process exit code of this class.
    pub fn code(self) -> u8 {
        match self {
            Class::Failed => 1,
            Class::Usage => 2,
            Class::Refused => 3,
            Class::Strict => 4,
            Class::Interrupted => 130,
        }
    }
}

/// Everything that can go wrong, each with the values that a user needs to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something about a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb: "open", "write", "rename".
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// A GGUF file breaks the format.
    #[error("{}: {defect}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        defect: GgufError,
    },
    /// Second moments cannot be measured, read or added up.
    #[error(transparent)]
    Moments(#[from] MomentsError),
    /// Parts of divided work cannot be put together.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// A model, statistics or permutation file is sound in itself but not what the work needs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model cannot be converted as asked, or a converted file is not what it should be.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A model cannot be measured as asked.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A text cannot be had, or is not what it should be.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// Models cannot be compared.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// An analysis found what it was asked to fail on.
    #[error(transparent)]
    Analysis(#[from] AnalysisError),
    /// Numbers about a model cannot be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Bits cannot be given out as asked.
    #[error(transparent)]
    Mixed(#[from] MixedError),
    /// A recipe cannot be followed.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A batch cannot be run, or a job of one failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A GPU is not there, or refused something.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// llama.cpp refused something.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// Operands of a calibration operation do not fit.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// A result cannot be shown.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The command line made no sense.
    #[error("{message}")]
    Usage {
        /// What is wrong with it.
        message: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// `SIGINT` or `SIGTERM` arrived.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Wraps what the operating system said about `path` while it was asked to `action`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, action, source }
    }

    /// How this failure ends the program.
    pub fn class(&self) -> Class {
        match self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => Class::Refused,
                _ => Class::Failed,
            },
            Error::Gguf { defect, .. } => defect.class(),
            Error::Model(error) => error.class(),
            Error::Moments(error) => error.class(),
            Error::Parts(error) => error.class(),
            Error::Convert(error) => error.class(),
            Error::Eval(error) => error.class(),
            Error::Corpus(error) => error.class(),
            Error::Compare(error) => error.class(),
            Error::Analysis(error) => error.class(),
            Error::Export(error) => error.class(),
            Error::Mixed(error) => error.class(),
            Error::Recipe(error) => error.class(),
            Error::Pipeline(error) => error.class(),
            Error::Device(error) => error.class(),
            Error::Llama(error) => error.class(),
            Error::Ops(error) => error.class(),
            Error::Report(_) => Class::Failed,
            Error::Usage { .. } => Class::Usage,
            Error::Interrupted => Class::Interrupted,
        }
    }

    /// Whether a second try may pass without anything being changed: the network, a full disk, another run at the same file.
    pub fn is_transient(&self) -> bool {
        use io::ErrorKind as Kind;
        match self {
            Error::Io { source, .. } => matches!(
                source.kind(),
                Kind::StorageFull
                    | Kind::Interrupted
                    | Kind::TimedOut
                    | Kind::WouldBlock
                    | Kind::ResourceBusy
                    | Kind::StaleNetworkFileHandle
            ),
            Error::Model(ModelError::OutputBusy { .. })
            | Error::Corpus(CorpusError::Transport { .. })
            | Error::Eval(EvalError::NoSpace { .. }) => true,
            Error::Corpus(CorpusError::Status { status, .. }) => matches!(status, 408 | 429 | 500..),
            Error::Pipeline(error) => error.is_transient(),
            _ => false,
        }
    }

    /// What the user can do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => {
                    Some("free some space, or write to another disk; nothing was left under the final name".into())
                }
                io::ErrorKind::PermissionDenied => {
                    Some("check the owner and the mode of the file and of its folder".into())
                }
                _ => None,
            },
            Error::Gguf { defect, .. } => defect.hint(),
            Error::Model(error) => error.hint(),
            Error::Moments(error) => error.hint(),
            Error::Parts(error) => error.hint(),
            Error::Convert(error) => error.hint(),
            Error::Eval(error) => error.hint(),
            Error::Corpus(error) => error.hint(),
            Error::Compare(error) => error.hint(),
            Error::Analysis(error) => error.hint(),
            Error::Export(error) => error.hint(),
            Error::Mixed(error) => error.hint(),
            Error::Recipe(error) => error.hint(),
            Error::Pipeline(error) => error.hint(),
            Error::Device(error) => error.hint(),
            Error::Llama(error) => error.hint(),
            Error::Ops(error) => error.hint(),
            Error::Report(error) => error.hint(),
            Error::Usage { hint, .. } => hint.clone(),
            Error::Interrupted => None,
        }
    }
}
