//! A batch as text and records: what will be done, and what was done.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::table::Table;
use crate::error::{Class, Error, PipelineError};
use crate::pipeline::plan::{Budget, Prepared, Verdict};
use crate::pipeline::report::{cells, counts};
use crate::pipeline::runner::{Summary, common_code};
use crate::pipeline::state::Stage;
use crate::util::units::{Bytes, Elapsed};

/// What becomes of a job, in a word or two.
fn fate(job: &Prepared) -> &'static str {
    match &job.verdict {
        Verdict::Todo => "to do",
        Verdict::Known(known) if known.stage == Stage::Done => "done before",
        Verdict::Known(_) => "rejected",
        Verdict::Refused(_) if is_to_fetch(job) => "to fetch",
        Verdict::Refused(_) => "refused",
        Verdict::TooLarge(_) => "too large",
    }
}

fn why(job: &Prepared) -> Option<String> {
    match &job.verdict {
        Verdict::Todo => None,
        Verdict::Known(known) => known.message.clone(),
        Verdict::Refused(error) | Verdict::TooLarge(error) => Some(error.to_string()),
    }
}

fn elapsed(seconds: f64) -> String {
    Elapsed(Duration::from_secs_f64(seconds.max(0.0))).to_string()
}

/// The whole plan.
pub(super) fn plan(jobs: &[Prepared], budget: Budget, at_a_time: usize) -> String {
    let mut table = Table::new(&["job", "output", "plan", ">size", ">bits", ">memory", ">time", "statistics"]);
    let none = || "–".to_owned();
    for job in jobs {
        let estimate = job.estimate.as_ref();
        table.row([
            job.task.name.clone(),
            job.task.output.display().to_string(),
            fate(job).to_owned(),
            estimate.map_or_else(none, |found| Bytes(found.bytes).to_string()),
            estimate.and_then(|found| found.bits_per_weight).map_or_else(none, |bits| format!("{bits:.3}")),
            estimate.map_or_else(none, |_| Bytes(job.memory()).to_string()),
            estimate.and_then(|found| found.seconds).map_or_else(none, elapsed),
            job.statistics().map_or_else(none, |name| name[..6].to_owned()),
        ]);
    }
    let mut text = table.render();
    for (job, why) in jobs.iter().filter_map(|job| Some((job, why(job)?))) {
        text += &format!("\n{}: {}: {why}", job.task.name, fate(job));
    }
    text + "\n\n" + &totals(jobs, budget, at_a_time)
}

fn totals(jobs: &[Prepared], budget: Budget, at_a_time: usize) -> String {
    let todo: Vec<&Prepared> = jobs.iter().filter(|job| job.is_todo()).collect();
    let estimates = || todo.iter().filter_map(|job| job.estimate.as_ref());
    let bytes: u64 = estimates().map(|estimate| estimate.bytes).sum();
    let memory = todo.iter().map(|job| job.memory()).max().unwrap_or(0);
    let disk = budget.disk.map_or(String::new(), |disk| format!(" of {}", Bytes(disk)));
    let mut text = format!(
        "{} of {} jobs to do, {at_a_time} at a time; outputs {}{disk}; memory of the largest job {} of {}",
        todo.len(),
        jobs.len(),
        Bytes(bytes),
        Bytes(memory),
        Bytes(budget.memory),
    );
    let seconds: Option<f64> = estimates().map(|estimate| estimate.seconds).sum();
    match seconds.filter(|_| !todo.is_empty()) {
        Some(seconds) => {
            text += &format!(
                "\nTime about {}, less what is shared; gates come on top",
                elapsed(seconds / at_a_time as f64)
            );
        }
        None if !todo.is_empty() => text += "\nTime: add --timed, which does a sample of every job",
        None => {}
    }
    let mut names: Vec<String> = todo.iter().filter_map(|job| job.statistics()).collect();
    let all = names.len();
    names.sort();
    names.dedup();
    if names.len() < all {
        text += &format!("\nThe text runs for {} statistics, which {all} jobs share", names.len());
    }
    text
}

/// The plan for programs.
pub(super) fn plan_record(jobs: &[Prepared]) -> Vec<Value> {
    let one = |job: &Prepared| {
        json!({
            "job": job.task.name, "model": job.model, "preset": job.task.preset, "output": job.task.output, "plan": fate(job),
            "message": why(job), "memory": job.estimate.as_ref().map(|_| job.memory()), "statistics": job.statistics(),
            "key": job.key.as_ref().map(|key| &key.output), "estimate": job.estimate
        })
    };
    jobs.iter().map(one).collect()
}

/// The exit code of a plan: whether every job could be done.
pub(super) fn plan_code(jobs: &[Prepared]) -> u8 {
    let class = |job: &Prepared| match &job.verdict {
        _ if is_to_fetch(job) => None,
        Verdict::Refused(error) | Verdict::TooLarge(error) => Some(error.class()),
        Verdict::Known(known) if known.stage != Stage::Done => Some(Class::Strict),
        _ => None,
    };
    common_code(jobs.iter().filter_map(class))
}

fn is_to_fetch(job: &Prepared) -> bool {
    matches!(job.verdict, Verdict::Refused(Error::Pipeline(PipelineError::NotFetched { .. })))
}

/// What was done.
pub(super) fn summary(summary: &Summary) -> String {
    let mut table = Table::new(&[
        "job",
        "status",
        ">size",
        ">bits",
        ">weight error",
        ">KL divergence",
        ">fallbacks",
        ">time",
        ">peak",
    ]);
    for job in &summary.jobs {
        table.row(cells(job));
    }
    let mut text = table.render();
    for job in &summary.jobs {
        if let Some(message) = &job.message {
            text += &format!("\n{}: {}: {message}", job.job, job.status.word());
        }
    }
    text + "\n\n" + &counts(summary)
}
