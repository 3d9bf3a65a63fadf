//! The C and CUDA code, compiled by the machine's C++ compiler: its own checks, against the golden vectors, against its scalar functions and against the
//! codec, have to pass. Device code runs in an emulation of warps, so no GPU is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use tcq4::tcq::{CHUNK, Codec, Encoder, Isa, TILE_ROWS, Tile};

use crate::support::{Dir, skip};

/// A compiler and what its programs need to run.
struct Machine {
    compiler: String,
    runner: Option<&'static str>,
    flags: &'static [&'static str],
    /// A program runs once for each: whether emulated threads run from the last to the first.
    backwards: &'static [bool],
}

impl Machine {
    /// This one, with the compiler that `CXX` names, or `c++`.
    fn own() -> Self {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        Self { compiler, runner: None, flags: &[], backwards: &[false] }
    }

    /// The same for programs that emulate a GPU: what they do must not depend on the order of threads.
    fn emulating() -> Self {
        Self { backwards: &[false, true], ..Self::own() }
    }

    /// A 64-bit ARM, emulated. Linked statically: the emulator then needs no libraries of that machine.
    fn arm() -> Self {
        let (compiler, runner) = ("aarch64-linux-gnu-g++".into(), Some("qemu-aarch64-static"));
        Self { compiler, runner, flags: &["-static"], backwards: &[false] }
    }

    /// The first of its programs that is not there.
    fn missing(&self) -> Option<&str> {
        let is_there = |program: &&str| Command::new(program).arg("--version").output().is_ok();
        [Some(self.compiler.as_str()), self.runner].into_iter().flatten().find(|program| !is_there(program))
    }

    /// Compiles a program of some sources of the repository and runs it; gives what it printed (the last time), and fails with that where it failed. Where
    /// a program is missing the test is skipped.
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
        self.backwards.iter().fold(None, |_, &backwards| Some(self.execute(&program, arguments, backwards)))
    }

    fn execute(&self, program: &Path, arguments: &[&str], backwards: bool) -> String {
        let mut run = self.runner.map_or_else(|| Command::new(program), Command::new);
        if self.runner.is_some() {
            run.args(["-cpu", "max"]).arg(program);
        }
        if backwards {
            run.env("TCQ4_EMULATED_BACKWARDS", "1");
        }
        let run = run.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{told}\n{}", String::from_utf8_lossy(&run.stderr));
        assert!(told.contains("ok"), "a check that says nothing has checked nothing: {told}");
        told
    }
}

/// Compiles a check of `cuda/dev` with these flags and runs it.
fn check_device_as(name: &str, more: &[&str], arguments: &[&str]) {
    let flags = [&["-std=c++20", "-Wno-unknown-pragmas", "-I", "cuda/include"], more].concat();
    Machine::emulating().run(&flags, &[Path::new("cuda/dev").join(name)], arguments);
}

/// The same as a device with INT4 tensor cores has it and as one without.
fn check_device(name: &str, arguments: &[&str]) {
    for native_int4 in ["-DTCQ4_NATIVE_INT4=0", "-DTCQ4_NATIVE_INT4=1"] {
        check_device_as(name, &[native_int4], arguments);
    }
}

#[test]
fn device_code_does_what_the_scalar_functions_do() {
    check_device("check_device_code.cpp", &[]);
}

#[test]
fn kernels_do_what_scalar_code_does() {
    check_device("check_kernels.cpp", &[]);
}

#[test]
fn products_on_the_device_are_those_of_f64() {
    check_device("check_products.cpp", &[]);
}

/// Compute capability 7.5: INT4, and one half of a chunk in shared memory.
#[test]
fn products_without_asynchronous_copies_are_those_of_f64() {
    check_device_as("check_products.cpp", &["-DTCQ4_NATIVE_INT4=1", "-DTCQ4_GEMM_STAGES=1"], &[]);
}

#[test]
fn every_rung_of_the_ladders_is_right() {
    for ladder in ["cuda/dev/ladder_activations.cu", "cuda/dev/ladder_mul_mat.cu"] {
        let flags = ["-std=c++20", "-Wno-unknown-pragmas", "-I", "cuda/include", "-x", "c++"];
        Machine::emulating().run(&flags, &[ladder.into()], &[]);
    }
}

/// Weights that are hard to encode: rows of very different kinds, for every 8 rows once.
fn hard_weights(random: &mut ChaCha8Rng, rows: usize, columns: usize) -> Vec<f32> {
    let mut weights = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let scale = [0.02, 1.0, 1e-4, 3.0][row / TILE_ROWS % 4];
        for column in 0..columns {
            let uniform = random.random_range(-1.0f32..1.0);
            weights.push(match (row + row / TILE_ROWS) % TILE_ROWS {
                0 | 1 => uniform * scale,
                2 => uniform.powi(9) * scale,
                3 => uniform * scale + 0.5 * scale,
                4 if column / 32 % 3 == 0 => 0.0,
                4 => (uniform * 4.0).round() * scale,
                5 if column % 97 == 5 => 1000.0 * scale,
                5 => uniform * 1e-42,
                6 => uniform * 1e-11,
                _ => 0.01,
            });
        }
    }
    weights
}

/// What both encoders make of some weights, in the form that `check_encode.cpp` reads.
fn encoded_case(weights: &[f32], columns: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for size in [weights.len() / columns, columns] {
        bytes.extend_from_slice(&i32::try_from(size).unwrap().to_le_bytes());
    }
    bytes.extend_from_slice(bytemuck::cast_slice(weights));
    for encoder in [Encoder::Parity, Encoder::Default] {
        let codec = Codec::with_isa(encoder, Isa::Scalar).unwrap();
        let (mut made, mut losses) = (Vec::<Tile>::new(), Vec::new());
        for rows in weights.chunks_exact(TILE_ROWS * columns) {
            let mut tiles = vec![bytemuck::Zeroable::zeroed(); columns / CHUNK];
            let loss = codec.encode_rows(&mut rows.to_vec(), columns, &mut tiles).unwrap();
            made.extend_from_slice(&tiles);
            losses.extend([loss.error_sq, loss.weight_sq]);
        }
        bytes.extend_from_slice(bytemuck::cast_slice(&made));
        bytes.extend_from_slice(bytemuck::cast_slice(&losses));
    }
    bytes
}

#[test]
fn tiles_encoded_on_the_device_are_those_of_the_codec() {
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let hard = hard_weights(&mut random, 32, 512);
    let of_halves: Vec<f32> = hard.iter().map(|&weight| half::f16::from_f32(weight).to_f32()).collect();
    let large: Vec<f32> = (0..8 * 256).map(|_| random.random_range(-20000.0f32..20000.0)).collect();
    // Rotated weights that codes stand for exactly, without a zero point and with either sign of the scale: sums of 256 of them are exact.
    let mut exact: Vec<f32> = (0..8 * 256)
        .map(|i| (if i % 32 == 7 { -8.0 } else { f32::from(random.random_range(-8i8..8)) }) * [0.25, -0.5][i / 256 % 2])
        .collect();
    Codec::new(Encoder::Default).fwht(&mut exact);
    let cases = [(hard, 512), (of_halves, 256), (large, 256), (exact, 256), (vec![0.0; 8 * 256], 256)];
    let cases: Vec<u8> = cases.iter().flat_map(|(weights, columns)| encoded_case(weights, *columns)).collect();
    let dir = Dir::new();
    let path = dir.write("cases", &cases);
    check_device("check_encode.cpp", &[path.to_str().unwrap()]);
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
