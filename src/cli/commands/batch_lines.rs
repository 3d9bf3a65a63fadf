//! What happens in a batch, on stderr: a table of the jobs at work where there is a terminal, a line for what is over elsewhere.
#![expect(clippy::print_stderr, reason = "plain lines where there is no terminal")]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::Session;
use crate::cli::printer::Printer;
use crate::pipeline::events::{Event, Listener};
use crate::pipeline::state::Numbers;
use crate::util::units::{Bytes, Elapsed};

/// Draws what happens.
pub(super) struct Lines<'a> {
    printer: &'a Printer,
    table: Mutex<Option<LiveTable>>,
}

/// One line a job at work, and one for all.
struct LiveTable {
    all: MultiProgress,
    total: ProgressBar,
    jobs: BTreeMap<String, Row>,
}

struct Row {
    bar: ProgressBar,
    peak: u64,
}

impl<'a> Lines<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        let table = session.printer.draws_bars().then(LiveTable::new);
        Self { printer: &session.printer, table: Mutex::new(table) }
    }

    /// Prints a line, above the table if there is one.
    fn line(&self, table: Option<&LiveTable>, text: &str) {
        match table {
            Some(table) => table.all.suspend(|| eprintln!("{text}")),
            None if self.printer.is_talkative() => eprintln!("{text}"),
            None => {}
        }
    }
}

impl LiveTable {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0));
        total.set_style(style("{msg:>24} {bar:24} {human_pos}/{human_len} jobs  {elapsed} so far, {eta} left"));
        total.set_message("all jobs");
        Self { all, total, jobs: BTreeMap::new() }
    }

    fn hear(&mut self, event: &Event) {
        match event {
            Event::BatchBegin { jobs, .. } => self.total.set_length(*jobs as u64),
            Event::JobBegin { job, .. } => {
                let bar = self.all.insert_before(&self.total, ProgressBar::new(0));
                self.jobs.insert(job.clone(), Row { bar, peak: 0 });
            }
            Event::PhaseBegin { job, phase, total, unit } => self.begin(job, phase, *total, unit),
            Event::PhaseProgress { job, phase, done, peak_memory, .. } => {
                if let Some(row) = self.jobs.get_mut(job) {
                    row.peak = *peak_memory;
                    row.bar.set_message(format!("{job}  {phase}  {}", Bytes(row.peak)));
                    row.bar.set_position(*done);
                }
            }
            Event::JobEnd { job, .. } => {
                self.end(job);
                self.total.inc(1);
            }
            Event::Fetch { repository, file, done, total } => self.fetch(repository, file, *done, *total),
            Event::BatchEnd { .. } => self.total.finish_and_clear(),
            _ => {}
        }
    }

    fn end(&mut self, name: &str) {
        if let Some(row) = self.jobs.remove(name) {
            row.bar.finish_and_clear();
        }
    }

    fn fetch(&mut self, repository: &str, file: &str, done: u64, total: u64) {
        let name = format!("hf:{repository}: {file}");
        if !self.jobs.contains_key(&name) {
            let bar = self.all.insert_before(&self.total, ProgressBar::new(0));
            self.jobs.insert(name.clone(), Row { bar, peak: 0 });
            self.begin(&name, "fetch", total, "bytes");
        }
        if let Some(row) = self.jobs.get(&name) {
            row.bar.set_position(done);
        }
        if done >= total {
            self.end(&name);
        }
    }

    fn begin(&mut self, job: &str, phase: &str, total: u64, unit: &str) {
        let Some(row) = self.jobs.get_mut(job) else { return };
        row.bar.reset();
        row.bar.set_length(total);
        row.bar.set_style(style(match unit {
            "bytes" => "{msg:>48} {bar:24} {percent:>3} %  {binary_bytes_per_sec}  {eta} left",
            "tokens" => "{msg:>48} {bar:24} {percent:>3} %  {per_sec} tokens  {eta} left",
            _ => "{msg:>48} {bar:24} {percent:>3} %  {eta} left",
        }));
        row.bar.set_message(format!("{job}  {phase}  {}", Bytes(row.peak)));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Listener for Lines<'_> {
    fn hear(&self, event: &Event) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = table.as_mut() {
            table.hear(event);
        }
        if let Some(text) = text_of(event, table.is_some()) {
            self.line(table.as_ref(), &text);
        }
    }
}

/// The line of an event, if it is worth one; fewer are where a table shows the rest.
fn text_of(event: &Event, drawn: bool) -> Option<String> {
    let elapsed = |seconds: f64| Elapsed(Duration::from_secs_f64(seconds.max(0.0)));
    match event {
        Event::JobBegin { job, output, attempt } if !drawn => {
            let again = if *attempt > 1 { format!(", try {attempt}") } else { String::new() };
            Some(format!("{job}: begins, for {}{again}", output.display()))
        }
        Event::PhaseEnd { job, phase, seconds } if !drawn => {
            Some(format!("{job}: {phase} done in {}", elapsed(*seconds)))
        }
        Event::Fetch { repository, file, done: 0, total } if !drawn => {
            Some(format!("hf:{repository}: {file}: fetching {}", Bytes(*total)))
        }
        Event::Fetch { repository, file, done, total } if done == total => {
            Some(format!("hf:{repository}: {file}: fetched, {}", Bytes(*total)))
        }
        Event::Retry { job, attempt, pause, message } => {
            Some(format!("{job}: try {attempt} failed, the next one in {}: {message}", elapsed(*pause)))
        }
        Event::JobEnd { job, status, message, numbers, .. } => {
            let rest = message.as_ref().map_or_else(|| facts(numbers), |message| format!(": {message}"));
            Some(format!("{job}: {}{rest}", status.word()))
        }
        _ => None,
    }
}

fn facts(numbers: &Numbers) -> String {
    let mut text = String::new();
    if let (Some(bytes), Some(bits)) = (numbers.bytes, numbers.bits_per_weight) {
        text += &format!(", {}, {bits:.3} bits a weight", Bytes(bytes));
    }
    if let Some((kld, _)) = numbers.kld {
        text += &format!(", KL divergence {kld:.5}");
    }
    let seconds = Elapsed(Duration::from_secs_f64(numbers.seconds.max(0.0)));
    if numbers.attempts > 0 { text + &format!(", {seconds}, peak {}", Bytes(numbers.peak_memory)) } else { text }
}
