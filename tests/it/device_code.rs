//! The C and CUDA code that goes into llama.cpp, compiled by the machine's C++ compiler: its own checks, against the golden vectors and against its
//! scalar functions, have to pass. Device code runs in an emulation of warps, so no GPU is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Dir, skip};

/// A compiler and what its programs need to run.
struct Machine {
    compiler: String,
    runner: Option<&'static str>,
    flags: &'static [&'static str],
}

impl Machine {
    /// This one, with the compiler that `CXX` names, or `c++`.
    fn own() -> Self {
        Self { compiler: std::env::var("CXX").unwrap_or_else(|_| "c++".into()), runner: None, flags: &[] }
    }

    /// A 64-bit ARM, emulated. Linked statically: the emulator then needs no libraries of that machine.
    fn arm() -> Self {
        Self { compiler: "aarch64-linux-gnu-g++".into(), runner: Some("qemu-aarch64-static"), flags: &["-static"] }
    }

    /// The first of its programs that is not there.
    fn missing(&self) -> Option<&str> {
        let is_there = |program: &&str| Command::new(program).arg("--version").output().is_ok();
        [Some(self.compiler.as_str()), self.runner].into_iter().flatten().find(|program| !is_there(program))
    }

    /// Compiles a program of some sources of the repository and runs it; gives what it printed, and fails with that where it failed. Where a program is
    /// missing the test is skipped.
    fn run(&self, flags: &[&str], sources: &[PathBuf], arguments: &[&str]) -> Option<String> {
        if let Some(missing) = self.missing() {
            skip(&format!("{missing} is not there"));
            return None;
        }
        let dir = Dir::new();
        let program = dir.file("check");
        let mut compile = Command::new(&self.compiler);
        compile.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]);
        let compiled = compile.args(self.flags).args(flags).arg("-o").arg(&program).args(sources).output().unwrap();
        assert!(compiled.status.success(), "{compile:?}\n{}", String::from_utf8_lossy(&compiled.stderr));
        let mut run = self.runner.map_or_else(|| Command::new(&program), Command::new);
        if self.runner.is_some() {
            run.args(["-cpu", "max"]).arg(&program);
        }
        let run = run.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{told}\n{}", String::from_utf8_lossy(&run.stderr));
        assert!(told.contains("ok"), "a check that says nothing has checked nothing: {told}");
        Some(told)
    }
}

#[test]
fn device_code_does_what_the_scalar_functions_do() {
    for native_int4 in ["-DTCQ4_NATIVE_INT4=0", "-DTCQ4_NATIVE_INT4=1"] {
        let flags = ["-std=c++20", "-Wno-unknown-pragmas", "-I", "cuda/include", native_int4];
        Machine::own().run(&flags, &["cuda/dev/check_device_code.cpp".into()], &[]);
    }
}

const KERNELS: &str = "ggml-patches/files/ggml/src/ggml-cpu";

/// The check of the CPU kernels, on a machine.
fn check_kernels(machine: &Machine) -> Option<String> {
    let of_kernels = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tcq4"));
    let all = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(KERNELS)).unwrap();
    let mut sources: Vec<PathBuf> = all
        .map(|entry| entry.unwrap().path())
        .filter(|path| of_kernels(path) && path.extension().is_some_and(|extension| extension == "cpp"))
        .collect();
    assert!(!sources.is_empty());
    sources.push("ggml-patches/tests/host_tcq4.cpp".into());
    machine.run(&["-std=c++17", "-I", "cuda/include", "-I", KERNELS], &sources, &["fixtures/golden"])
}

#[test]
fn cpu_kernels_agree_with_the_golden_vectors_and_with_each_other() {
    check_kernels(&Machine::own());
}

#[test]
fn arm_kernels_agree_with_the_golden_vectors_and_with_each_other() {
    if let Some(told) = check_kernels(&Machine::arm()) {
        assert!(told.contains("neon"), "{told}");
    }
}
