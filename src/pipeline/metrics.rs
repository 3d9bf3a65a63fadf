//! A text file for scrapers (OpenMetrics 1.0, as the textfile collectors of node exporters read it), replaced whole whenever something changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::events::{Event, Listener, Status};
use super::state::Numbers;
use crate::error::Result;
use crate::util::atomic_file;

/// The least time between two files while jobs go on.
const EVERY_SECONDS: f64 = 5.0;

/// Writes what scrapers want to know.
pub struct MetricsFile {
    path: PathBuf,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    numbers: Gathered,
    written: Option<Instant>,
    failed: bool,
}

/// What was heard.
#[derive(Default)]
struct Gathered {
    jobs: u64,
    running: BTreeSet<String>,
    ended: BTreeMap<String, (PathBuf, Status, Numbers)>,
    retries: u64,
}

impl MetricsFile {
    /// Writes the file for the first time, so that one that cannot be written is found before the work.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create(path: &Path) -> Result<Self> {
        write(path, &Gathered::default())?;
        Ok(Self { path: path.to_path_buf(), inside: Mutex::default() })
    }

    /// The file, if it could not be written at some time.
    pub fn failed(&self) -> Option<&Path> {
        self.inside.lock().is_ok_and(|inside| inside.failed).then_some(&self.path)
    }
}

impl Listener for MetricsFile {
    fn hear(&self, event: &Event) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let at_once = inside.numbers.hear(event);
        let due = inside.written.is_none_or(|at| at.elapsed().as_secs_f64() >= EVERY_SECONDS);
        if at_once || due {
            inside.written = Some(Instant::now());
            inside.failed |= write(&self.path, &inside.numbers).is_err();
        }
    }
}

fn write(path: &Path, numbers: &Gathered) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    atomic_file::write(path, true, &[], numbers.text(now).as_bytes())
}

impl Gathered {
    /// Takes an event in; whether it is worth a file at once.
    fn hear(&mut self, event: &Event) -> bool {
        match event {
            Event::BatchBegin { jobs, .. } => self.jobs = *jobs as u64,
            Event::JobBegin { job, .. } => drop(self.running.insert(job.clone())),
            Event::Retry { .. } => self.retries += 1,
            Event::JobEnd { job, output, status, numbers, .. } => {
                self.running.remove(job);
                let ended = (output.clone(), *status, numbers.clone());
                self.ended.insert(job.clone(), ended);
                // Hundreds of jobs that were done before are not worth a file each.
                return *status != Status::Skipped;
            }
            Event::BatchEnd { .. } => {}
            _ => return false,
        }
        true
    }

    fn text(&self, now: f64) -> String {
        let mut text = String::new();
        let count = |status: Status| self.ended.values().filter(|(_, found, _)| *found == status).count() as u64;
        let running = self.running.len() as u64;
        let waiting = self.jobs.saturating_sub(self.ended.len() as u64 + running);
        family(&mut text, "tcq4_batch_jobs", "gauge", "", "Jobs by state.");
        for (state, number) in Status::ALL.map(|status| (status.word(), count(status))) {
            let _ = writeln!(text, "tcq4_batch_jobs{{state=\"{state}\"}} {number}");
        }
        let _ = writeln!(text, "tcq4_batch_jobs{{state=\"running\"}} {running}");
        let _ = writeln!(text, "tcq4_batch_jobs{{state=\"waiting\"}} {waiting}");
        family(&mut text, "tcq4_batch_retries", "counter", "", "Tries after a failure.");
        let _ = writeln!(text, "tcq4_batch_retries_total {}", self.retries);
        let done = self.ended.values().filter(|(_, status, _)| *status == Status::Done);
        let bytes: u64 = done.filter_map(|(_, _, numbers)| numbers.bytes).sum();
        family(&mut text, "tcq4_batch_written_bytes", "counter", "bytes", "Bytes of finished outputs.");
        let _ = writeln!(text, "tcq4_batch_written_bytes_total {bytes}");
        self.per_job(&mut text);
        let name = "tcq4_batch_last_change_timestamp_seconds";
        family(&mut text, name, "gauge", "seconds", "When this file was written.");
        let _ = writeln!(text, "{name} {now:.3}\n# EOF");
        text
    }

    /// One value a job.
    fn per_job(&self, text: &mut String) {
        type Pick = fn(&Numbers) -> Option<f64>;
        let families: [(&str, &str, &str, Pick); 6] = [
            ("seconds", "seconds", "Seconds of work.", |numbers| Some(numbers.seconds)),
            ("peak_memory_bytes", "bytes", "The most memory of one process.", |numbers| {
                Some(numbers.peak_memory as f64)
            }),
            ("output_bytes", "bytes", "Bytes of the output.", |numbers| numbers.bytes.map(|bytes| bytes as f64)),
            ("bits_per_weight", "", "Bits a weight.", |numbers| numbers.bits_per_weight),
            ("kl_divergence", "", "KL divergence from the source, in nats.", |numbers| numbers.kld.map(|(kld, _)| kld)),
            ("fallbacks", "", "Steps and tensors that fell back.", |numbers| Some(numbers.fallbacks as f64)),
        ];
        for (name, unit, help, pick) in families {
            let name = format!("tcq4_batch_job_{name}");
            family(text, &name, "gauge", unit, help);
            for (job, (output, _, numbers)) in &self.ended {
                let Some(value) = pick(numbers) else { continue };
                let (job, output) = (label(job), label(&output.to_string_lossy()));
                let _ = writeln!(text, "{name}{{job=\"{job}\",output=\"{output}\"}} {value}");
            }
        }
    }
}

fn family(text: &mut String, name: &str, kind: &str, unit: &str, help: &str) {
    let _ = writeln!(text, "# TYPE {name} {kind}");
    if !unit.is_empty() {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
    let _ = writeln!(text, "# HELP {name} {help}");
}

/// The value of a label, with its special signs escaped.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_counted_and_labels_escaped() {
        let mut gathered = Gathered::default();
        let begin = |name: &str| Event::JobBegin { job: name.into(), output: "o".into(), attempt: 1 };
        let (memory, batch) = (1, "b".into());
        gathered.hear(&Event::BatchBegin { batch, jobs: 3, at_a_time: 2, memory, tcq4: "x" });
        gathered.hear(&begin("a"));
        gathered.hear(&begin("b\"\\"));
        let numbers = Numbers { bytes: Some(7), ..Numbers::default() };
        let (output, status) = ("o\"".into(), Status::Done);
        gathered.hear(&Event::JobEnd { job: "b\"\\".into(), output, status, message: None, numbers });
        let text = gathered.text(1.5);
        for line in [
            "tcq4_batch_jobs{state=\"done\"} 1",
            "tcq4_batch_jobs{state=\"running\"} 1",
            "tcq4_batch_jobs{state=\"waiting\"} 1",
            "tcq4_batch_written_bytes_total 7",
            r#"tcq4_batch_job_output_bytes{job="b\"\\",output="o\""} 7"#,
            "tcq4_batch_last_change_timestamp_seconds 1.500",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
    }
}
