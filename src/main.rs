//! The `tcq4` command.

fn main() -> std::process::ExitCode {
    tcq4::cli::main()
}
