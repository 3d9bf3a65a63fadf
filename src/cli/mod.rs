//! The command line: the only user of clap and of the terminal. Library code below knows neither.

mod args;
mod commands;
mod printer;
mod progress;
mod settings;
mod table;
mod values;
mod version;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;

use self::args::{Cli, Command, GlobalArgs};
use self::printer::Printer;
use self::progress::TerminalProgress;
use crate::error::{Class, Error};

/// What every command works with.
struct Session {
    printer: Printer,
    progress: TerminalProgress,
    global: GlobalArgs,
}

/// Runs the program and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    init_log(cli.global.verbose);
    match start(&cli.global).and_then(|session| dispatch(&session, cli.command)) {
        Ok(class) => ExitCode::from(class),
        Err(error) => {
            Printer::error(&error);
            ExitCode::from(exit_class(&error).code())
        }
    }
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
        Command::Inspect(args) => commands::inspect::run(session, &args),
        Command::Verify(args) => commands::verify::run(session, &args),
        Command::Diff(args) => commands::diff::run(session, &args),
        Command::Eval(args) => commands::eval::run(session, &args),
    }
}

fn start(global: &GlobalArgs) -> anyhow::Result<Session> {
    version::check_cpu()?;
    if let Some(threads) = global.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build_global()?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first signal asks for an orderly end, the second one ends the program at once.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(Class::Interrupted.code()), Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let printer = Printer::new(global.json, global.quiet);
    Ok(Session { printer, progress: TerminalProgress::new(printer, interrupted), global: global.clone() })
}

fn init_log(verbose: u8) {
    let default = match verbose {
        0 => "error",
        1 => "tcq4=info,warn",
        2 => "tcq4=debug,info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TCQ4_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
}

fn exit_class(error: &anyhow::Error) -> Class {
    error.chain().find_map(|e| e.downcast_ref::<Error>()).map_or(Class::Failed, Error::class)
}
