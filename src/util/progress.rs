//! How library code tells a user what it is doing, without knowing about terminals.

/// What a progress bar counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of input.
    Bytes,
    /// Tokens of text.
    Tokens,
    /// Things: tensors, chunks, files.
    Items,
}

/// A listener to the progress of long work. One phase runs at a time; `advance` may be called from any thread.
pub trait Progress: Sync {
    /// A phase named `label` of `total` units begins; the one before, if any, is over.
    fn begin(&self, label: &str, total: u64, unit: Unit);
    /// `amount` further units are done.
    fn advance(&self, amount: u64);
    /// The phase is over.
    fn end(&self);
    /// Something that the user should know: a fallback, a substitution, a file that was written.
    fn note(&self, message: &str);
    /// Whether the user asked to stop; long loops ask this between two pieces of work.
    fn interrupted(&self) -> bool {
        false
    }
}

/// A listener that hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&self, _label: &str, _total: u64, _unit: Unit) {}
    fn advance(&self, _amount: u64) {}
    fn end(&self) {}
    fn note(&self, _message: &str) {}
}
