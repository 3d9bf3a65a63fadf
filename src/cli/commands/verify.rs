//! `tcq4 verify`: proves a TCQ4 file sound.

use crate::cli::args::VerifyArgs;
use crate::cli::table::Table;
use crate::cli::{Outcome, Session};
use crate::convert::{TensorReport, Verification, verify, verify_against};
use crate::gguf::Source;
use crate::tcq::Encoder;

/// Tensors shown when not all are.
const WORST: usize = 5;

pub(in crate::cli) fn run(session: &Session, args: &VerifyArgs) -> Outcome {
    let file = Source::open(&args.file)?;
    let codec = session.codec(Encoder::Default)?;
    let verification = match &args.against {
        Some(model) => verify_against(&file, &Source::open(model)?, codec, &session.progress)?,
        None => verify(&file, codec, &session.progress)?,
    };
    session.printer.text(&render(&verification, args));
    session.printer.record("verify", &verification);
    Ok(0)
}

fn render(verification: &Verification, args: &VerifyArgs) -> String {
    let mut text = format!(
        "{}: sound. {} tensors, {} of them TCQ4; {} permutations are bijections; {} hashes match",
        args.file.display(),
        verification.tensors.len(),
        verification.tcq4_tensors,
        verification.permutations,
        verification.hashes,
    );
    if verification.marks > 0 {
        text += &format!("; {} tensors have an activation path of their own", verification.marks);
    }
    let mut measured: Vec<&TensorReport> = verification.tensors.iter().filter(|t| t.error_rel.is_some()).collect();
    if measured.is_empty() {
        return text;
    }
    text += &format!("\nmean relative error of the weights {:.3} %", percent(mean_error(&measured)));
    if !args.all {
        measured.sort_by(|a, b| b.error_rel.partial_cmp(&a.error_rel).unwrap_or(std::cmp::Ordering::Equal));
        measured.truncate(WORST);
        text += ", the largest:";
    }
    let mut table = Table::new(&["tensor", ">error %", "permuted"]);
    for report in measured {
        let permuted = if report.permuted { "yes" } else { "" };
        table.row([
            report.name.clone(),
            format!("{:.3}", percent(report.error_rel.unwrap_or(0.0))),
            permuted.to_string(),
        ]);
    }
    text + "\n" + &table.render()
}

/// The squared error in percent of the squared weights.
fn percent(error_rel: f64) -> f64 {
    error_rel * 100.0
}

/// The mean over all weights.
fn mean_error(reports: &[&TensorReport]) -> f64 {
    let weights: u64 = reports.iter().map(|r| r.weights).sum();
    reports.iter().map(|r| r.error_rel.unwrap_or(0.0) * r.weights as f64).sum::<f64>() / weights.max(1) as f64
}
