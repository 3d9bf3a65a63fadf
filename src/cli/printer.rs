//! The one owner of stdout and stderr: data goes to stdout, everything else to stderr.
#![expect(clippy::print_stderr, reason = "this is where output is allowed")]

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::relay;

/// The version of the JSON records on stdout; it grows when a field changes its meaning or goes away.
pub(crate) const RECORD_VERSION: u32 = 1;

/// What goes where, as `--json` and `--quiet` say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    json: bool,
    quiet: bool,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names are the keys of the record")]
struct Record<'a, T> {
    record: &'a str,
    record_version: u32,
    tcq4: &'a str,
    #[serde(flatten)]
    body: T,
}

impl Printer {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether text on stdout is wanted.
    pub(crate) fn is_text(self) -> bool {
        !self.json && !self.quiet
    }

    /// Whether progress and notes are wanted on stderr.
    pub(crate) fn is_talkative(self) -> bool {
        !self.quiet
    }

    /// Whether bars can be drawn on stderr.
    pub(crate) fn draws_bars(self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// Prints text, unless a record or silence was asked for. A reader that went away is no error.
    pub(crate) fn text(self, text: &str) {
        if self.is_text() {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// Prints the record of a command, if one was asked for.
    pub(crate) fn record(self, name: &str, body: impl Serialize) {
        if self.json
            && let Some(json) = record_text(name, body)
        {
            let _ = writeln!(std::io::stdout(), "{json}");
        }
    }

    /// Prints an error with its causes and its remedy; nothing silences it.
    pub(crate) fn error(error: &anyhow::Error) {
        let ours = error.chain().find_map(|e| e.downcast_ref::<crate::Error>());
        if relay::error(&message(error), ours.is_some_and(crate::Error::is_transient)) {
            return;
        }
        eprintln!("error: {}", message(error));
        let hint = ours.and_then(crate::Error::hint);
        if let Some(hint) = hint {
            eprintln!("hint: {hint}");
        }
    }
}

/// The record of a command as text, as it stands on stdout or in a file.
pub(crate) fn record_text(name: &str, body: impl Serialize) -> Option<String> {
    let record = Record { record: name, record_version: RECORD_VERSION, tcq4: env!("CARGO_PKG_VERSION"), body };
    serde_json::to_string_pretty(&record).ok()
}

/// The error and its causes in one line; a cause that the message before quotes already is left out.
fn message(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |message, cause| {
        let cause = cause.to_string();
        if message.ends_with(&cause) { message } else { format!("{message}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_not_said_twice() {
        let inner = || crate::Error::io("m.gguf", "open")(std::io::ErrorKind::NotFound.into());
        assert_eq!(message(&inner().into()), "m.gguf: cannot open: entity not found");
        let outer = anyhow::Error::from(inner()).context("no model");
        assert_eq!(message(&outer), "no model: m.gguf: cannot open: entity not found");
    }
}
