//! The command line: the only user of clap and of the terminal. Library code below knows neither.

mod args;
mod commands;
mod data;
mod device;
mod openmp;
mod printer;
mod progress;
mod relay;
mod settings;
mod table;
mod values;
mod version;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use self::args::{Cli, Command, GlobalArgs};
use self::printer::Printer;
use self::progress::TerminalProgress;
use crate::error::{Class, Error};
use crate::llama::check_cpu;
use crate::pipeline::child::end_with_parent;
use crate::tcq::{Codec, Encoder};
use crate::util::interrupt::Interrupt;

/// What every command works with.
struct Session {
    printer: Printer,
    progress: TerminalProgress,
    global: GlobalArgs,
}

impl Session {
    /// The codec of the best SIMD path, or of the one that was asked for.
    fn codec(&self, encoder: Encoder) -> crate::Result<Codec> {
        match self.global.isa {
            None => Ok(Codec::new(encoder)),
            Some(isa) => Codec::with_isa(encoder, isa).ok_or_else(|| Error::Usage {
                message: format!("this CPU has no {isa}"),
                hint: Some("leave --isa out to use the best path".into()),
            }),
        }
    }

    /// The number of threads, 0 for one a core.
    fn threads(&self) -> u32 {
        self.global.threads.unwrap_or(0)
    }
}

/// Runs the program and says how it ended.
pub fn main() -> ExitCode {
    end_with_parent();
    let code = match run() {
        Ok(class) => class,
        Err(error) => {
            Printer::error(&error);
            exit_class(&error).code()
        }
    };
    relay::peak();
    ExitCode::from(code)
}

fn run() -> Outcome {
    check_cpu()?; // first of all: what follows may use instructions that this CPU lacks
    let cli = Cli::parse();
    init_log(cli.global.verbose);
    if cli.command.runs_a_model() {
        openmp::sleep_while_waiting();
    }
    dispatch(&start(&cli.global)?, cli.command)
}

/// Exit code 0, or 4 where `--strict` was asked for and something had to fall back.
type Outcome = anyhow::Result<u8>;

fn dispatch(session: &Session, command: Command) -> Outcome {
    match command {
        Command::Convert(args) => commands::convert::run(session, &args),
        Command::Calibrate(args) => commands::calibrate::run(session, &args),
        Command::Perms(args) => commands::perms::run(session, &args),
        Command::Quantize(args) => commands::quantize::run(session, &args),
        Command::Dequantize(args) => commands::dequantize::run(session, &args),
        Command::Merge(args) => commands::merge::run(session, &args),
        Command::Inspect(args) => commands::inspect::run(session, &args),
        Command::Verify(args) => commands::verify::run(session, &args),
        Command::Diff(args) => commands::diff::run(session, &args),
        Command::Eval(args) => commands::eval::run(session, &args),
        Command::Datasets(args) => commands::datasets::run(session, &args),
        Command::Export(args) => commands::export::run(session, &args),
        Command::Compare(args) => commands::compare::run(session, &args),
        Command::Analyze(args) => commands::analyze::run(session, &args),
        Command::Batch(args) => commands::batch::run(session, &args),
        Command::Kernels(args) => commands::kernels::run(session, &args),
    }
}

fn start(global: &GlobalArgs) -> anyhow::Result<Session> {
    if let Some(threads) = global.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build_global()?;
    }
    let printer = Printer::new(global.json, global.quiet);
    Ok(Session { printer, progress: TerminalProgress::new(printer, Interrupt::install()?), global: global.clone() })
}

fn init_log(verbose: u8) {
    let default = match verbose {
        0 => "error",
        1 => "tcq4=info,warn",
        2 => "tcq4=debug,info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TCQ4_LOG").unwrap_or_else(|_| default.into());
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .without_time()
        .init();
}

fn exit_class(error: &anyhow::Error) -> Class {
    error.chain().find_map(|e| e.downcast_ref::<Error>()).map_or(Class::Failed, Error::class)
}
