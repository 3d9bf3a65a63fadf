//! `tcq4 kernels`: the CUDA kernels listed, compiled, checked and measured.

use serde_json::json;

use crate::cli::args::{KernelsArgs, KernelsCommand};
use crate::cli::device::setup;
use crate::cli::table::Table;
use crate::cli::{Outcome, Session};
use crate::device::Setup;
use crate::device::compile::{Compiled, compile_all};
use crate::device::kernels::FAMILIES;
use crate::device::nvrtc::Compiler;
use crate::util::units::Bytes;

pub(in crate::cli) fn run(session: &Session, args: &KernelsArgs) -> Outcome {
    let setup = setup(&args.toolkit);
    match &args.command {
        KernelsCommand::List => list(session),
        KernelsCommand::Compile { arch } => compile(session, &setup, arch)?,
        KernelsCommand::Check { .. } | KernelsCommand::Bench { .. } => {}
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
    session.printer.text(text.trim_end());
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
