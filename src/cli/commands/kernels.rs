//! `tcq4 kernels`: the CUDA kernels listed, compiled, checked and measured.

use serde_json::json;

use crate::cli::args::{KernelsArgs, KernelsCommand};
use crate::cli::device::setup;
use crate::cli::table::Table;
use crate::cli::{Outcome, Session};
use crate::device::bench::{Line, Options, bench};
use crate::device::check::{Check, check, verdict};
use crate::device::compile::{Compiled, compile_all};
use crate::device::kernels::{FAMILIES, OF_CONVERTER, kernels};
use crate::device::nvrtc::Compiler;
use crate::device::{Facts, Gpu, Setup};
use crate::error::DeviceError;
use crate::util::progress::Progress;
use crate::util::units::Bytes;

pub(in crate::cli) fn run(session: &Session, args: &KernelsArgs) -> Outcome {
    let setup = setup(&args.toolkit);
    match &args.command {
        KernelsCommand::List => list(session),
        KernelsCommand::Compile { arch } => compile(session, &setup, arch)?,
        KernelsCommand::Check { kernels, seed } => run_checks(session, &setup, kernels, *seed)?,
        KernelsCommand::Bench { kernels, quick } => run_bench(session, &setup, kernels, *quick)?,
    }
    Ok(0)
}

fn list(session: &Session) {
    let mut text = String::new();
    for family in FAMILIES {
        let names = family.names.join(", ");
        text += &format!(
            "{names}\n    {}\n    {}; bound by {}; {}\n",
            family.about,
            family.parameters,
            family.bound.name(),
            family.file
        );
    }
    text += &format!(
        "\nThe converter itself runs those of {}; the others are there to be measured, and for programs that run models.",
        OF_CONVERTER.join(", ")
    );
    session.printer.text(&text);
    session.printer.record("kernels", json!({ "families": FAMILIES }));
}

fn compile(session: &Session, setup: &Setup, architectures: &[u32]) -> crate::Result<()> {
    let compiler = Compiler::open(setup.libraries.as_deref(), setup.cache.clone())?;
    let compiled = compile_all(&compiler, architectures)?;
    let mut table = Table::new(&["for", ">files", ">size", ">time", ""]);
    for &architecture in architectures {
        let own: Vec<&Compiled> = compiled.iter().filter(|one| one.architecture == architecture).collect();
        let bytes = own.iter().map(|one| one.bytes as u64).sum();
        let seconds = own.iter().map(|one| one.seconds).sum::<f64>();
        let kind = if own.iter().all(|one| one.machine_code) {
            "machine code"
        } else {
            "PTX: this NVRTC does not know the GPU"
        };
        let cells =
            [format!("sm_{architecture}"), own.len().to_string(), Bytes(bytes).to_string(), format!("{seconds:.1} s")];
        table.row(cells.into_iter().chain([kind.to_owned()]));
    }
    session.printer.text(&format!("NVRTC {} ({})", compiler.version(), compiler.path().display()));
    session.printer.text(&table.render());
    let nvrtc = json!({ "version": compiler.version(), "path": compiler.path() });
    session.printer.record("kernels-compile", json!({ "nvrtc": nvrtc, "compiled": compiled }));
    Ok(())
}

/// Refuses words that no kernel's name contains; `more` are names of other lines.
fn check_wanted(wanted: &[String], more: &[&str]) -> crate::Result<()> {
    let is_known = |part: &&String| {
        kernels().any(|kernel| kernel.name.contains(part.as_str()))
            || more.iter().any(|name| name.contains(part.as_str()))
    };
    match wanted.iter().find(|part| !is_known(part)) {
        Some(name) => Err(DeviceError::NoKernel { name: name.clone() }.into()),
        None => Ok(()),
    }
}

fn describe(gpu: &Facts) -> String {
    format!(
        "{}, sm_{}, {} multiprocessors, {}, L2 {}; driver for CUDA {}, NVRTC {}",
        gpu.name,
        gpu.architecture,
        gpu.multiprocessors,
        Bytes(gpu.memory_bytes),
        Bytes(gpu.l2_bytes),
        gpu.driver,
        gpu.nvrtc
    )
}

fn run_checks(session: &Session, setup: &Setup, wanted: &[String], seed: u64) -> crate::Result<()> {
    check_wanted(wanted, &[])?;
    let gpu = Gpu::open(setup)?;
    session.progress.note("the first run compiles the kernels, which takes a minute");
    let checks = check(&gpu, wanted, seed)?;
    let mut names: Vec<&str> = checks.iter().map(|check| check.kernel).collect();
    names.dedup();
    names.sort_unstable();
    names.dedup();
    let mut table = Table::new(&["kernel", ">checks", ">values", "tolerance", ">worst", ""]);
    for name in names {
        let own: Vec<&Check> = checks.iter().filter(|check| check.kernel == name).collect();
        table.row(summary(name, &own));
    }
    session.printer.text(&describe(gpu.facts()));
    session.printer.text(&table.render());
    session.printer.record("kernels-check", json!({ "gpu": gpu.facts(), "seed": seed, "checks": checks }));
    Ok(verdict(&checks)?)
}

/// One line for all checks of a kernel; the worst difference is in units of the tolerance.
fn summary(name: &str, checks: &[&Check]) -> [String; 6] {
    let values: usize = checks.iter().map(|check| check.values).sum();
    let failed = checks.iter().filter(|check| !check.passed()).count();
    let loosest = checks.iter().map(|check| check.tolerance).max_by(|a, b| a.value.total_cmp(&b.value));
    let tolerance = match loosest {
        Some(tolerance) if tolerance.value > 0.0 => format!("{} {:e}", tolerance.name, tolerance.value),
        _ => "exact".to_owned(),
    };
    let worst = checks.iter().map(|check| check.worst).fold(0.0, f64::max);
    let verdict = if failed == 0 { "ok".to_owned() } else { format!("{failed} FAILED") };
    [name.to_owned(), checks.len().to_string(), values.to_string(), tolerance, format!("{worst:.3}"), verdict]
}

fn run_bench(session: &Session, setup: &Setup, wanted: &[String], quick: bool) -> crate::Result<()> {
    check_wanted(wanted, &[])?;
    let gpu = Gpu::open(setup)?;
    let report = bench(&gpu, Options { wanted, quick })?;
    session.printer.text(&describe(&report.gpu));
    session.printer.text(&format!("copy on the GPU: {:.0} GB/s read and written", report.copy_gigabytes_per_second));
    if let Some(reason) = &report.no_cublas {
        session.progress.note(&format!("no comparison with cuBLAS: {reason}"));
    }
    let mut table =
        Table::new(&["name", ">tokens", ">rows", ">k", ">us", ">GB/s", ">of copy", ">TOPS", ">of int8", ">of f16"]);
    report.lines.iter().for_each(|line| table.row(cells(line)));
    session.printer.text(&table.render());
    session.printer.record("kernels-bench", &report);
    Ok(())
}

fn cells(line: &Line) -> [String; 10] {
    let share = |share: f64| format!("{:.0} %", 100.0 * share);
    let maybe = |part: Option<f64>| part.map_or_else(String::new, share);
    let rows = if line.rows == 0 { String::new() } else { line.rows.to_string() };
    let speed = line.tera_operations_per_second;
    [
        line.name.clone(),
        line.tokens.to_string(),
        rows,
        line.k.to_string(),
        format!("{:.2}", line.microseconds),
        format!("{:.0}", line.gigabytes_per_second),
        maybe(line.of_copy),
        if speed == 0.0 { String::new() } else { format!("{speed:.1}") },
        maybe(line.of_cublas_int8),
        maybe(line.of_cublas_f16),
    ]
}
