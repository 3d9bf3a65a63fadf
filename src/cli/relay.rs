//! What a job of a batch tells the batch that started it: reports on stderr in place of words for people.
#![expect(clippy::print_stderr, reason = "reports go to stderr, a line each")]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::pipeline::child::{PARENT, Report};
use crate::util::process::peak_memory;
use crate::util::progress::Unit;

/// The least time between two reports of progress.
const EVERY: Duration = Duration::from_millis(200);

/// Whether a batch listens.
static ON: LazyLock<bool> = LazyLock::new(|| std::env::var_os(PARENT).is_some());

fn send(report: &Report) -> bool {
    if *ON && let Ok(line) = serde_json::to_string(report) {
        eprintln!("{line}");
    }
    *ON
}

pub(super) fn begin(phase: &str, total: u64, unit: Unit) {
    let unit = match unit {
        Unit::Bytes => "bytes",
        Unit::Tokens => "tokens",
        Unit::Items => "items",
    };
    send(&Report::Begin { phase: phase.to_owned(), total, unit: unit.to_owned() });
}

/// Tells now and then how far the phase is.
pub(super) fn at(done: u64, told: &mut Instant) {
    if *ON && told.elapsed() >= EVERY {
        *told = Instant::now();
        send(&Report::At { done });
    }
}

/// Whether a batch heard it; nobody else should then. So with the others.
pub(super) fn end(elapsed: Duration) -> bool {
    send(&Report::End { seconds: elapsed.as_secs_f64() })
}

pub(super) fn note(text: &str) -> bool {
    send(&Report::Note { text: text.to_owned() })
}

pub(super) fn error(message: &str, transient: bool) -> bool {
    send(&Report::Error { message: message.to_owned(), transient })
}

/// Tells the most memory that this process had: its last word.
pub(super) fn peak() {
    if *ON {
        send(&Report::Peak { bytes: peak_memory("self") });
    }
}
