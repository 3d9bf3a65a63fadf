//! Progress on a terminal: bars with rate and remaining time; elsewhere one line a phase.
#![expect(clippy::print_stderr, reason = "plain progress lines where there is no terminal")]

use std::sync::Mutex;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::printer::Printer;
use super::relay;
use crate::util::interrupt::Interrupt;
use crate::util::progress::{Progress, Unit};
use crate::util::units::Elapsed;

/// Draws what library code reports.
pub(crate) struct TerminalProgress {
    printer: Printer,
    interrupt: Interrupt,
    phase: Mutex<Option<Phase>>,
}

struct Phase {
    label: String,
    bar: ProgressBar,
    started: Instant,
    told: Instant,
}

impl TerminalProgress {
    /// Reports through `printer`, and passes on that the user asked to stop.
    pub(crate) fn new(printer: Printer, interrupt: Interrupt) -> Self {
        Self { printer, interrupt, phase: Mutex::new(None) }
    }

    fn style(unit: Unit) -> ProgressStyle {
        let template = match unit {
            Unit::Bytes => {
                "{msg:>12} {bar:30} {percent:>3} %  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
            }
            Unit::Tokens => "{msg:>12} {bar:30} {percent:>3} %  {human_pos}/{human_len} tokens  {per_sec}  {eta} left",
            Unit::Items => "{msg:>12} {bar:30} {percent:>3} %  {human_pos}/{human_len}  {eta} left",
        };
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
    }

    fn finish(&self, phase: &Phase) {
        phase.bar.finish_and_clear();
        if relay::end(phase.started.elapsed()) {
            return;
        }
        if self.printer.is_talkative() {
            eprintln!("{:>12} done in {}", phase.label, Elapsed(phase.started.elapsed()));
        }
    }
}

impl Progress for TerminalProgress {
    fn begin(&self, label: &str, total: u64, unit: Unit) {
        self.end();
        let bar = if self.printer.draws_bars() { ProgressBar::new(total) } else { ProgressBar::hidden() };
        bar.set_style(Self::style(unit));
        bar.set_message(label.to_string());
        relay::begin(label, total, unit);
        let phase = Phase { label: label.to_string(), bar, started: Instant::now(), told: Instant::now() };
        if let Ok(mut slot) = self.phase.lock() {
            *slot = Some(phase);
        }
    }

    fn advance(&self, amount: u64) {
        if let Ok(mut phase) = self.phase.lock()
            && let Some(phase) = phase.as_mut()
        {
            phase.bar.inc(amount);
            relay::at(phase.bar.position(), &mut phase.told);
        }
    }

    fn end(&self) {
        if let Ok(mut phase) = self.phase.lock()
            && let Some(phase) = phase.take()
        {
            self.finish(&phase);
        }
    }

    fn note(&self, message: &str) {
        if relay::note(message) || !self.printer.is_talkative() {
            return;
        }
        let bar = self.phase.lock().ok().and_then(|phase| phase.as_ref().map(|p| p.bar.clone()));
        match bar {
            Some(bar) => bar.suspend(|| eprintln!("note: {message}")),
            None => eprintln!("note: {message}"),
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupt.is_set()
    }
}
