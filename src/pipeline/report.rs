//! A batch for people: a page and a Markdown document of its results. The record that they are made of stays the truth.

use std::fmt::Write;
use std::time::Duration;

use super::events::Status;
use super::runner::{JobResult, Summary};
use crate::report::page::{Block, Finding, Page, Section, Weight};
use crate::report::plot::{Axis, Chart, Figure, Plot, Series, Shape};
use crate::report::table::{Cell, Column, Table};
use crate::util::units::{Bytes, Elapsed};

/// Jobs of one figure, at most: more bars than that are no picture.
const MOST_BARS: usize = 40;

/// The lines below the table: how many jobs ended in which way.
pub fn counts(summary: &Summary) -> String {
    let counts = summary.counts();
    let parts: Vec<String> = counts.iter().map(|(status, count)| format!("{count} {}", status.word())).collect();
    let seconds = Elapsed(Duration::from_secs_f64(summary.seconds));
    format!("{} jobs in {seconds}: {}", summary.jobs.len(), parts.join(", "))
}

/// The results as a Markdown document.
pub fn markdown(summary: &Summary, title: &str) -> String {
    let mut text = format!("# {title}\n\n{}.\n\n", counts(summary));
    text += "| job | status | size | bits a weight | weight error | KL divergence | fallbacks | time | peak memory |\n";
    text += "| --- | --- | --: | --: | --: | --: | --: | --: | --: |\n";
    for job in &summary.jobs {
        let cells = cells(job).map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    let said: Vec<_> = summary.jobs.iter().filter_map(|job| Some((job, job.message.as_ref()?))).collect();
    if !said.is_empty() {
        text += "\n## What went wrong\n\n";
        for (job, message) in said {
            let _ = writeln!(text, "- {}: {}", job.job, message.replace('\n', " "));
        }
    }
    text
}

/// The cells of a job for people.
pub fn cells(job: &JobResult) -> [String; 9] {
    let none = || "–".to_owned();
    let numbers = &job.numbers;
    let number = |value: Option<f64>, digits: usize| value.map_or_else(none, |value| format!("{value:.digits$}"));
    let worked = numbers.attempts > 0;
    [
        job.job.clone(),
        job.status.word().to_owned(),
        numbers.bytes.map_or_else(none, |bytes| Bytes(bytes).to_string()),
        number(numbers.bits_per_weight, 3),
        numbers.weight_error.map_or_else(none, |error| format!("{:.3} %", 100.0 * error)),
        numbers.kld.map_or_else(none, |(kld, error)| format!("{kld:.5} ± {error:.5}")),
        if worked { numbers.fallbacks.to_string() } else { none() },
        if worked { Elapsed(Duration::from_secs_f64(numbers.seconds)).to_string() } else { none() },
        if numbers.peak_memory > 0 { Bytes(numbers.peak_memory).to_string() } else { none() },
    ]
}

/// The results as a page.
pub fn page(summary: &Summary, title: &str) -> Page {
    let facts = summary.counts().into_iter().map(|(status, count)| (status.word().to_owned(), count.to_string()));
    let figures = Section {
        id: "pictures".into(),
        title: "Pictures".into(),
        words: vec!["Only jobs whose output is there, or was rejected after it was measured.".into()],
        blocks: vec![Block::Figures(figures(summary))],
        ..Section::default()
    };
    let table = Section {
        id: "jobs".into(),
        title: "Jobs".into(),
        words: vec!["Times and memory of skipped jobs are those of the run that did them.".into()],
        blocks: vec![Block::Table(table(summary))],
        ..Section::default()
    };
    let drawn = figures
        .blocks
        .iter()
        .any(|block| matches!(block, Block::Figures(all) if all.iter().any(|one| !one.is_empty())));
    let sections = if drawn { vec![table, figures] } else { vec![table] };
    Page {
        title: title.to_owned(),
        lead: counts(summary) + ".",
        facts: facts.collect(),
        findings: findings(summary),
        sections,
    }
}

fn findings(summary: &Summary) -> Vec<Finding> {
    let one = |job: &JobResult| {
        let title = format!("{}: {}", job.job, job.status.word());
        let text = job.message.clone()?;
        Some(Finding { weight: Weight::Warning, title, text, section: "jobs".into() })
    };
    let bad: Vec<Finding> = summary.jobs.iter().filter_map(one).collect();
    if !bad.is_empty() {
        return bad;
    }
    let good = summary.jobs.iter().all(|job| job.status.is_good());
    let (title, text) =
        ("Every output is there".to_owned(), "No job failed, and no gate rejected an output.".to_owned());
    if good { vec![Finding { weight: Weight::Good, title, text, section: "jobs".into() }] } else { Vec::new() }
}

fn table(summary: &Summary) -> Table {
    let columns = [
        Column::text("job", "Job", "model and preset"),
        Column::choice("status", "Status", "how it ended"),
        Column::file("output"),
        Column::number("bytes", "Bytes", "of the output"),
        Column::number("bits_per_weight", "Bits a weight", "over the whole model"),
        Column::number("weight_error", "Weight error", "squared, relative to the squared weights"),
        Column::number("kld", "KL divergence", "from the source, in nats"),
        Column::number("kld_error", "± error", "standard error"),
        Column::number("expert_share", "Least expert", "what it saw of an even split"),
        Column::number("fallbacks", "Fallbacks", "steps and tensors"),
        Column::number("seconds", "Seconds", "of work, all tries"),
        Column::number("peak_memory", "Peak memory", "bytes of one process"),
        Column::number("attempts", "Tries", ""),
        Column::file("message"),
    ];
    let real = |value: Option<f64>| Cell::real(value.map(|value| value as f32));
    let row = |job: &JobResult| {
        let numbers = &job.numbers;
        vec![
            Cell::text(&job.job),
            Cell::text(job.status.word()),
            Cell::text(job.output.to_string_lossy()),
            Cell::count(numbers.bytes),
            real(numbers.bits_per_weight),
            Cell::share(numbers.weight_error.map(|error| error as f32)),
            real(numbers.kld.map(|(kld, _)| kld)),
            real(numbers.kld.map(|(_, error)| error)),
            real(numbers.expert_share),
            Cell::Count(numbers.fallbacks),
            Cell::Real(numbers.seconds as f32),
            Cell::Count(numbers.peak_memory),
            Cell::Count(u64::from(numbers.attempts)),
            Cell::text(job.message.clone().unwrap_or_default()),
        ]
    };
    Table::new("jobs", "One row a job.", &columns, summary.jobs.iter().map(row).collect())
}

fn figures(summary: &Summary) -> Vec<Figure> {
    let measured: Vec<&JobResult> =
        summary.jobs.iter().filter(|job| job.numbers.bytes.is_some()).take(MOST_BARS).collect();
    let names: Vec<String> = measured.iter().map(|job| job.job.clone()).collect();
    let values = |pick: &dyn Fn(&JobResult) -> Option<f64>| -> Vec<f64> {
        measured.iter().map(|job| pick(job).unwrap_or(f64::NAN)).collect()
    };
    let bars = |name: &str, title: &str, label: &str, heights: Vec<f64>| {
        let series = vec![Series { name: label.to_owned(), shape: Shape::Bars(heights) }];
        let y = Axis { include: Some(0.0), ..Axis::linear(label) };
        let chart = Chart { x: Axis::named("", names.clone()), y, series, wide: true };
        let caption = "One bar a job, in the order of the batch.".to_owned();
        Figure { name: name.to_owned(), title: title.to_owned(), caption, plot: Plot::Chart(chart) }
    };
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let done = |job: &JobResult| job.status == Status::Done || job.numbers.attempts > 0;
    vec![
        bars("divergence", "KL divergence from the source", "nats", values(&|job| job.numbers.kld.map(|(kld, _)| kld))),
        bars("size", "Size of the outputs", "MiB", values(&|job| job.numbers.bytes.map(mebibytes))),
        bars("time", "Time of the jobs", "seconds", values(&|job| done(job).then_some(job.numbers.seconds))),
    ]
}
