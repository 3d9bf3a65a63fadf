//! The C and CUDA code that goes into llama.cpp, compiled by the machine's C++ compiler: its own checks, against the golden vectors and against its
//! scalar functions, have to pass. Device code runs in an emulation of warps, so no GPU is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Dir, skip};

/// The compiler: `CXX`, or `c++`.
fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

/// Compiles a program of some sources of the repository and runs it; a failure shows what it printed. Without a compiler the test is skipped.
fn compile_and_run(flags: &[&str], sources: &[PathBuf], arguments: &[&str]) {
    let dir = Dir::new();
    let program = dir.file("check");
    if Command::new(compiler()).arg("--version").output().is_err() {
        skip("there is no C++ compiler: neither CXX nor c++");
        return;
    }
    let mut command = Command::new(compiler());
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"])
        .args(flags);
    let compiled = command.arg("-o").arg(&program).args(sources).output().unwrap();
    assert!(compiled.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&compiled.stderr));
    let run = Command::new(&program).current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{told}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(told.contains("ok"), "a check that says nothing has checked nothing: {told}");
}

#[test]
fn device_code_does_what_the_scalar_functions_do() {
    for native_int4 in ["-DTCQ4_NATIVE_INT4=0", "-DTCQ4_NATIVE_INT4=1"] {
        let flags = ["-std=c++20", "-Wno-unknown-pragmas", "-I", "cuda/include", native_int4];
        compile_and_run(&flags, &["cuda/dev/check_device_code.cpp".into()], &[]);
    }
}

#[test]
fn cpu_kernels_agree_with_the_golden_vectors_and_with_each_other() {
    let kernels = "ggml-patches/files/ggml/src/ggml-cpu";
    let of_kernels = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tcq4"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(kernels);
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut sources: Vec<PathBuf> =
        all.filter(|path| of_kernels(path) && path.extension().is_some_and(|extension| extension == "cpp")).collect();
    assert!(!sources.is_empty());
    sources.push("ggml-patches/tests/host_tcq4.cpp".into());
    compile_and_run(&["-std=c++17", "-I", "cuda/include", "-I", kernels], &sources, &["fixtures/golden"]);
}
