//! GPUs: what can be known without one (sources, compilation, errors, the record), and with one where it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tcq4::convert::{Codes, Conversion, Converted, Job, PlanSettings, Provenance, Target, convert, output_metadata};
use tcq4::device::compile::compile_all;
use tcq4::device::kernels::{FAMILIES, OF_CONVERTER, kernels};
use tcq4::device::nvrtc::{Architecture, Compiler, Image, Unit};
use tcq4::device::shapes::{Act4, Act8, Activations, Block4, Block8, Shape};
use tcq4::device::{EncodeTiles, Gpu, Setup, sources};
use tcq4::error::DeviceError;
use tcq4::gguf::{GgmlType, Sharding, Source};
use tcq4::tcq::{Codec, Encoder, Loss, Tile};
use tcq4::util::progress::NoProgress;

use crate::support::tiny_model::TinyModel;
use crate::support::{Dir, skip};

/// Turing to Blackwell.
const ARCHITECTURES: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

fn nvrtc_folder() -> Option<PathBuf> {
    std::env::var_os("TCQ4_NVRTC_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// NVRTC, where the user or the system has it; else the test is skipped.
pub fn compiler(cache: Option<PathBuf>) -> Option<Compiler> {
    match Compiler::open(nvrtc_folder().as_deref(), cache) {
        Ok(compiler) => Some(compiler),
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

/// A GPU; else the test is skipped.
fn gpu() -> Option<Gpu> {
    let cache = std::env::temp_dir().join("tcq4-test-kernels");
    match Gpu::open(&Setup { libraries: nvrtc_folder(), cache: Some(cache) }) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(error.is_absence(), "{error}");
            skip(&error.to_string());
            None
        }
    }
}

fn cuda(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda").join(folder);
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn every_source_is_embedded() {
    let owned = |files: &[(&str, &str)]| -> Vec<(String, String)> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    };
    assert_eq!(owned(sources::FILES), cuda("kernels"));
    assert_eq!(owned(sources::HEADERS), cuda("include"));
}

/// The entry points of a source: spelled out, or one line each of a macro that is defined beside them. Nothing in it that looks like one goes unread.
fn entry_points(file: &str, text: &str) -> Vec<String> {
    const ENTRY: &str = r"TCQ4_KERNEL(?:\s+__launch_bounds__\([^)]*\))?\s+";
    let found = |pattern: &str| -> Vec<String> {
        let pattern = regex::Regex::new(pattern).unwrap();
        pattern.captures_iter(text).map(|found| found[1].to_owned()).collect()
    };
    let spelled = found(&format!(r"(?m)^{ENTRY}(tcq4_\w+)\s*\("));
    let macros = found(&format!(r"(?m)^#define (TCQ4_\w+_KERNEL)\(name, [\w, ]+\) \\\n {{4}}{ENTRY}name\("));
    let mut seen = spelled.len() + 2 * macros.len();
    let mut names = spelled;
    for one in &macros {
        let made = found(&format!(r"(?m)^{one}\((tcq4_\w+), [\w, ]+\)$"));
        assert!(!made.is_empty(), "{file}: {one} makes no entry point");
        seen += made.len();
        names.extend(made);
    }
    assert_eq!(seen, text.matches("_KERNEL").count(), "{file}: an entry point was not understood");
    assert!(!text.contains("__global__"), "{file}: an entry point that is not marked as one");
    names
}

#[test]
fn the_table_of_kernels_is_that_of_the_sources() {
    let of_file = |(file, text): &(String, String)| -> Vec<(String, String)> {
        entry_points(file, text).into_iter().map(|name| (name, file.clone())).collect()
    };
    let in_sources: Vec<_> = cuda("kernels").iter().flat_map(of_file).collect();
    let in_table: BTreeSet<_> =
        kernels().map(|kernel| (kernel.name.to_owned(), kernel.family.file.to_owned())).collect();
    assert_eq!(in_table, in_sources.iter().cloned().collect());
    assert_eq!(in_table.len(), kernels().count(), "a name stands twice");
    assert_eq!(in_table.len(), in_sources.len(), "a name stands twice in the sources");
    assert!(OF_CONVERTER.iter().all(|file| FAMILIES.iter().any(|family| family.file == *file)));
    assert!(FAMILIES.iter().all(|family| !family.about.is_empty() && !family.parameters.is_empty()));
}

#[test]
fn launches_give_products_the_shared_memory_that_their_header_asserts() {
    let headers = cuda("include");
    let (_, text) = headers.iter().find(|(name, _)| name == "tcq4_gemm_stage.cuh").unwrap();
    let dense: String = text.split_ascii_whitespace().collect();
    let launched = [
        ("act8", Act8::MUL_MAT_SHARED),
        ("act4", Act4::MUL_MAT_SHARED),
        ("block4", Block4::MUL_MAT_SHARED),
        ("block8", Block8::MUL_MAT_SHARED),
    ];
    for (name, [one, two]) in launched {
        assert!(dense.contains(&format!("TCQ4_GEMM_SHARED_IS(tcq4_{name},{one},{two});")), "{name}");
    }
}

#[test]
fn all_sources_compile_for_every_architecture() {
    let Some(compiler) = compiler(None) else { return };
    let known: Vec<u32> = compiler.architectures().iter().map(|known| known.0).collect();
    let compiled = compile_all(&compiler, &ARCHITECTURES).unwrap();
    assert_eq!(compiled.len(), ARCHITECTURES.len() * sources::FILES.len());
    for one in compiled {
        assert_eq!(one.machine_code, known.contains(&one.architecture), "{} for {}", one.file, one.architecture);
        assert!(one.bytes > 1000, "{} for {}: {} bytes", one.file, one.architecture, one.bytes);
    }
}

const GOOD: &str = "#include \"value.h\"\nextern \"C\" __global__ void put(int * to) { *to = VALUE; }\n";

#[test]
fn a_source_that_does_not_compile_is_told_with_the_messages_of_the_compiler() {
    let Some(compiler) = compiler(None) else { return };
    let unit = Unit { name: "bad.cu", text: GOOD, headers: &[("value.h", "#define VALUE nonsense\n")] };
    match compiler.compile(unit, Architecture(80)) {
        Err(DeviceError::Compile { file, architecture, log, .. }) => {
            assert_eq!((file.as_str(), architecture.as_str()), ("bad.cu", "sm_80"));
            assert!(log.contains("nonsense") && !log.contains('\0'), "{log}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn compiled_images_are_kept_and_a_damaged_one_is_made_again() {
    let dir = Dir::new();
    let Some(compiler) = compiler(Some(dir.path().into())) else { return };
    let headers = [("value.h", "#define VALUE 1\n")];
    let unit = Unit { name: "good.cu", text: GOOD, headers: &headers };
    let image = compiler.compile(unit, Architecture(80)).unwrap();
    assert!(matches!(&image, Image::Cubin(bytes) if bytes.starts_with(b"\x7fELF")));
    let kept = dir.names();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let whole = dir.read(&kept[0]);
    assert_eq!(compiler.compile(unit, Architecture(80)).unwrap(), image);

    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    dir.write(&kept[0], &damaged);
    assert_eq!(compiler.compile(unit, Architecture(80)).unwrap(), image);
    assert_eq!(dir.read(&kept[0]), whole);

    // Another header, another architecture: other images.
    let other = Unit { headers: &[("value.h", "#define VALUE 2\n")], ..unit };
    assert_ne!(compiler.compile(other, Architecture(80)).unwrap(), image);
    assert_ne!(compiler.compile(unit, Architecture(90)).unwrap(), image);
    assert_eq!(dir.names().len(), 3);
}

#[test]
fn an_unknown_gpu_gets_code_that_the_driver_compiles() {
    let Some(compiler) = compiler(None) else { return };
    let unit = Unit { name: "good.cu", text: GOOD, headers: &[("value.h", "#define VALUE 1\n")] };
    match compiler.compile(unit, Architecture(999)).unwrap() {
        Image::Ptx(text) => assert!(String::from_utf8_lossy(&text).contains(".target sm_")),
        Image::Cubin(_) => panic!("machine code for a GPU that nobody knows"),
    }
    let error = compiler.compile(unit, Architecture(20)).unwrap_err();
    assert!(matches!(&error, DeviceError::Architecture { architecture, .. } if architecture == "sm_20"), "{error}");
}

#[test]
fn kernels_are_listed() {
    let done = Dir::new().tcq4("kernels list").ok();
    assert!(done.stdout.contains("tcq4_fwht_f32, tcq4_fwht_f16\n    Walsh-Hadamard transform"), "{}", done.stdout);
    assert!(
        done.stdout.contains("\nThe converter itself runs those of dequantize.cu, encode.cu, gram.cu, statistics.cu;"),
        "{}",
        done.stdout
    );
    let record: Value = serde_json::from_str(&Dir::new().tcq4("kernels list --json").ok().stdout).unwrap();
    assert_eq!((&record["record"], &record["record_version"]), (&"kernels".into(), &1.into()));
    let listed: usize =
        record["families"].as_array().unwrap().iter().map(|one| one["names"].as_array().unwrap().len()).sum();
    assert_eq!(listed, kernels().count());
}

const NO_NVRTC: &str = "error: NVRTC, the compiler of CUDA, is not there: none of libnvrtc.so.13, libnvrtc.so.12, libnvrtc.so in \
                        empty can be loaded\nhint: install it";

#[test]
fn a_missing_compiler_is_an_error_with_a_hint() {
    let dir = Dir::new();
    dir.tcq4("kernels compile --nvrtc-dir empty").fails_like(2, NO_NVRTC);
    dir.tcq4_with("TCQ4_NVRTC_DIR", "empty", "kernels compile --json").fails_like(2, NO_NVRTC);
}

#[test]
fn wrong_words_are_refused() {
    let dir = Dir::new();
    for command in ["check", "bench"] {
        let message = "error: no kernel is called `nonsense`\nhint: `tcq4 kernels list` names them";
        dir.tcq4(&format!("kernels {command} nonsense")).fails_like(2, message);
    }
    assert_eq!(dir.tcq4("kernels").code, Some(2));
    assert_eq!(dir.tcq4("kernels compile --arch ninety").code, Some(2));
    assert_eq!(dir.tcq4("quantize MODEL out.gguf --device tpu").code, Some(2));
}

#[test]
fn compiling_is_reported() {
    let Some(compiler) = compiler(None) else { return };
    let dir = Dir::new();
    let cache = dir.path().join("cache");
    let line = format!("kernels compile --arch 80 --json --kernel-cache {}", cache.display());
    let done = dir.tcq4(&line);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let record: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(record["record"], "kernels-compile");
    assert_eq!(record["nvrtc"]["version"], compiler.version());
    let compiled = record["compiled"].as_array().unwrap();
    assert_eq!(compiled.len(), sources::FILES.len());
    for one in compiled {
        assert_eq!((&one["architecture"], &one["machine_code"]), (&80.into(), &true.into()));
        assert!(one["file"].is_string() && one["bytes"].is_u64() && one["seconds"].is_f64(), "{one}");
    }
    assert_eq!(std::fs::read_dir(cache).unwrap().count(), sources::FILES.len());
}

/// Whether the machine has no GPU; where it has, the tests of its absence are skipped.
pub fn without_gpu() -> bool {
    let is_missing = Gpu::open(&Setup { libraries: nvrtc_folder(), cache: None }).is_err();
    if !is_missing {
        skip("this machine has a GPU");
    }
    is_missing
}

#[test]
fn without_a_gpu_check_and_bench_fail_with_a_hint() {
    if !without_gpu() {
        return;
    }
    for command in ["check", "bench", "check tcq4_fwht --seed 7", "bench --quick --json"] {
        let done = Dir::new().tcq4(&format!("kernels {command}"));
        assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{}", done.stderr);
        assert!(done.error().contains("\nhint: "), "{}", done.stderr);
    }
}

/// `quantize` of a model whose other tensors need no encoder of ggml.
const QUANTIZE: &str = "quantize MODEL --embedding-type f16 --output-type f16";

#[test]
fn without_a_gpu_the_cpu_encodes_and_that_is_said() {
    if !without_gpu() {
        return;
    }
    let dir = Dir::new();
    dir.tcq4(&format!("{QUANTIZE} cpu.gguf")).ok();
    let done = dir.tcq4(&format!("{QUANTIZE} cuda.gguf --device cuda --json")).ok();
    assert!(
        done.stderr.contains("note: --device cuda: ") && done.stderr.contains("; the CPU does the work"),
        "{}",
        done.stderr
    );
    assert!(dir.read("cpu.gguf") == dir.read("cuda.gguf"), "the device is no part of the file");
    let record: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&record["device"]["asked"], &record["device"]["used"]), (&"cuda".into(), &"cpu".into()));
    assert!(record["device"]["fallback"].is_string(), "{}", record["device"]);
    assert_eq!(dir.tcq4(&format!("{QUANTIZE} a.gguf --strict")).code, Some(0));
    assert_eq!(dir.tcq4(&format!("{QUANTIZE} b.gguf --strict --device cuda")).code, Some(4));
}

/// A device of the codec itself: it leaves every third run of rows to the CPU.
struct Borrowed {
    codec: Codec,
    calls: AtomicUsize,
}

impl EncodeTiles for Borrowed {
    fn encode(
        &self,
        encoder: Encoder,
        rows: &[f32],
        columns: usize,
        tiles: &mut [Tile],
    ) -> Result<Option<Loss>, DeviceError> {
        assert_eq!(encoder, self.codec.encoder());
        if self.calls.fetch_add(1, Ordering::Relaxed) % 3 == 2 {
            return Ok(None);
        }
        let stripes = rows.chunks_exact(8 * columns).zip(tiles.chunks_exact_mut(columns / 256));
        Ok(Some(stripes.map(|(rows, tiles)| self.codec.encode_rows(&mut rows.to_vec(), columns, tiles).unwrap()).sum()))
    }
}

/// A device that refuses.
struct Broken;

impl EncodeTiles for Broken {
    fn encode(&self, _: Encoder, _: &[f32], _: usize, _: &mut [Tile]) -> Result<Option<Loss>, DeviceError> {
        Err(DeviceError::Driver { action: "run a kernel".into(), reason: "out of memory".into() })
    }
}

fn convert_on(source: &Source, output: &Path, device: Option<&dyn EncodeTiles>) -> tcq4::Result<Converted> {
    let keep = Some(GgmlType::F16);
    let settings =
        PlanSettings { embedding_type: keep, output_type: keep, fallback: GgmlType::F16, ..PlanSettings::default() };
    let plan = Conversion::new(source, &settings)?;
    let provenance = Provenance { encoder: Encoder::Default, recipe: "{}".into(), calibration: Vec::new() };
    let transforms = BTreeMap::new();
    let metadata = output_metadata(source, &plan, &transforms, &provenance);
    let codec = Codec::new(Encoder::Default);
    let codes = Codes::Nearest;
    let job = Job { source, plan: &plan, transforms: &transforms, codec, device, codes, statistics: None, metadata };
    let target = Target { path: output.to_path_buf(), force: false, sharding: Sharding::Single };
    convert(&job, &target, &NoProgress)
}

#[test]
fn what_a_device_encodes_goes_where_the_codec_would_put_it() {
    let dir = Dir::new();
    TinyModel { layers: 2, ..TinyModel::default() }.write(&dir.file("in.gguf"));
    let source = Source::open(&dir.file("in.gguf")).unwrap();
    let device = Borrowed { codec: Codec::new(Encoder::Default), calls: AtomicUsize::new(0) };
    let plain = convert_on(&source, &dir.file("plain.gguf"), None).unwrap();
    let borrowed = convert_on(&source, &dir.file("borrowed.gguf"), Some(&device)).unwrap();
    assert!(device.calls.into_inner() > 3);
    assert!(dir.read("plain.gguf") == dir.read("borrowed.gguf"));
    let errors = |converted: &Converted| converted.losses.iter().map(|loss| loss.error_rel).collect::<Vec<_>>();
    assert_eq!(errors(&plain), errors(&borrowed));
    let error = convert_on(&source, &dir.file("broken.gguf"), Some(&Broken)).unwrap_err();
    assert_eq!(error.to_string(), "the GPU cannot run a kernel: out of memory");
    assert!(!dir.file("broken.gguf").exists());
}

#[test]
fn kernels_give_what_the_cpu_gives() {
    let Some(gpu) = gpu() else { return };
    let checks = tcq4::device::check::check(&gpu, &[], 42).unwrap();
    let checked: BTreeSet<&str> = checks.iter().map(|check| check.kernel).collect();
    let has_int4 = gpu.facts().has_int4();
    let elsewhere = |name: &str| name.ends_with(if has_int4 { "_block8" } else { "_block4" });
    let missing: Vec<&str> =
        kernels().map(|kernel| kernel.name).filter(|name| !checked.contains(name) && !elsewhere(name)).collect();
    assert!(missing.is_empty(), "never checked: {missing:?}");
    tcq4::device::check::verdict(&checks).unwrap();
}

#[test]
fn a_model_encoded_on_a_gpu_has_the_same_bytes() {
    if gpu().is_none() {
        return;
    }
    let dir = Dir::new();
    for encoder in ["default", "parity"] {
        dir.tcq4(&format!("quantize MODEL cpu-{encoder}.gguf --encoder {encoder}")).ok();
        let done =
            dir.tcq4(&format!("quantize MODEL cuda-{encoder}.gguf --encoder {encoder} --device cuda --json")).ok();
        let record: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(record["device"]["used"], "cuda");
        assert!(dir.read(&format!("cpu-{encoder}.gguf")) == dir.read(&format!("cuda-{encoder}.gguf")), "{encoder}");
    }
}

#[test]
fn a_short_benchmark_measures_what_it_names() {
    let Some(gpu) = gpu() else { return };
    let wanted = ["tcq4_fwht_f32".to_owned(), "tcq4_mul_mat".to_owned()];
    let options = tcq4::device::bench::Options { wanted: &wanted, quick: true };
    let report = tcq4::device::bench::bench(&gpu, options).unwrap();
    assert!(report.copy_gigabytes_per_second > 1.0);
    assert!(
        report.lines.iter().any(|line| line.name == "tcq4_fwht_f32" && line.of_copy.is_some_and(|share| share > 0.01)),
        "{:?}",
        report.lines
    );
    assert!(
        report.lines.iter().any(|line| line.name.starts_with("tcq4_mul_mat") && line.tera_operations_per_second > 0.1)
    );
}

/// Folder of a driver that runs kernels on the CPU (`cuda/dev/emulated_driver.cpp`), as a GPU with or without INT4 tensor cores.
pub fn emulated_driver(dir: &Dir, native_int4: u8) -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        skip(&format!("{compiler} is not there"));
        return None;
    }
    let folder = dir.path().join(format!("driver{native_int4}"));
    std::fs::create_dir(&folder).unwrap();
    let mut compile = Command::new(&compiler);
    compile.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-shared",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]);
    compile.args(["-Wno-unknown-pragmas", "-I", "cuda/include", &format!("-DTCQ4_NATIVE_INT4={native_int4}"), "-o"]);
    let done = compile.arg(folder.join("libcuda.so")).arg("cuda/dev/emulated_driver.cpp").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(folder)
}

/// The folders of libraries with that of the emulated driver before them.
fn with_driver(driver: &Path) -> OsString {
    let found = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = [driver.to_path_buf()].into_iter().chain(std::env::split_paths(&found));
    std::env::join_paths(folders.filter(|folder| !folder.as_os_str().is_empty())).unwrap()
}

/// Runs a command on the emulated GPU; gives what it printed on stdout.
pub fn on_emulated_gpu(dir: &Dir, driver: &Path, line: &str) -> String {
    let cache = std::env::temp_dir().join("tcq4-test-kernels");
    let mut command = dir.command(&format!("{line} --kernel-cache {}", cache.display()));
    command.env("LD_LIBRARY_PATH", with_driver(driver)).env("TCQ4_EMULATED_LAUNCHES", dir.file("launches.txt"));
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && !told.contains("panicked"), "{line}: {told}");
    String::from_utf8(done.stdout).unwrap().replace(&format!("{}/", env!("CARGO_MANIFEST_DIR")), "")
}

/// Launches, shapes and buffers are those of a GPU; only the driver is another one.
#[test]
fn an_emulated_gpu_gives_what_the_cpu_gives() {
    if !cfg!(target_os = "linux") || compiler(None).is_none() {
        return;
    }
    let dir = Dir::new();
    let families = "fwht_f16 gather_f32 round_int8_f32 mul_vec_int8_m1 mul_vec_fused_int8_m4 mul_vec_fused_int4_m8 mul_vec_id mul_mat_int8 \
                    mul_mat_block8 mul_mat_id_int8 encode_default_f32 dequantize_f16 statistics gram smooth sort_experts";
    for (native_int4, some) in [(0, families), (1, "mul_mat_int4 mul_mat_block4")] {
        let Some(driver) = emulated_driver(&dir, native_int4) else { return };
        let told = on_emulated_gpu(&dir, &driver, &format!("kernels check {some} --json --seed {native_int4}"));
        let record: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&record["record"], &record["gpu"]["name"]), (&"kernels-check".into(), &"emulated GPU".into()));
        let checks = record["checks"].as_array().unwrap();
        assert!(checks.len() > 20, "{} checks", checks.len());
        for check in checks {
            assert_eq!(
                (&check["wrong"], &check["overrun"], &check["first"]),
                (&0.into(), &false.into(), &Value::Null),
                "{check}"
            );
            assert!(check["values"].as_u64().unwrap() > 0, "{check}");
        }
    }
}

/// What a queue does beside launches; on a GPU, emulated or not.
fn use_queues(gpu: &Gpu) {
    let (queue, other) = (gpu.queue().unwrap(), gpu.queue().unwrap());
    let mut impulse = vec![0.0f32; 256];
    impulse[0] = 16.0;
    let mut x = queue.upload(&impulse).unwrap();
    // A recording is played once before the rounds, so this is three times; the transform undoes itself.
    let seconds = queue.time(2, || queue.fwht(&mut x)).unwrap();
    assert!(seconds > 0.0 && seconds < 10.0, "{seconds} s");
    assert_eq!(queue.download(&x).unwrap(), [1.0; 256]);
    let nothing = queue.time(1, || Err(DeviceError::NoKernel { name: "none".into() }));
    assert_eq!(nothing, Err(DeviceError::NoKernel { name: "none".into() }));

    let mut theirs = other.room::<f32>(256).unwrap();
    let mut room = [0.0; 256];
    let refuses = |use_it: &mut dyn FnMut() -> Result<(), DeviceError>| catch_unwind(AssertUnwindSafe(use_it)).is_err();
    assert!(refuses(&mut || queue.fwht(&mut theirs)));
    assert!(refuses(&mut || queue.read(&theirs, &mut room)));
    assert!(refuses(&mut || queue.write(&room, &mut theirs)));
    assert!(refuses(&mut || queue.fill(&mut theirs, 0)));
    assert!(refuses(&mut || queue.copy(&x, &mut theirs)) && refuses(&mut || queue.copy(&theirs, &mut x)));

    let shape = Shape { rows: 8, chunks: 128, tokens: 8 };
    let (x, tiles) = (queue.room(shape.tokens * shape.k()).unwrap(), queue.room(shape.tiles()).unwrap());
    let mut y = queue.room(64).unwrap();
    let error = queue.mul_vec_fused::<Act8>((&x, None, &tiles), &mut y, shape, 8).unwrap_err();
    assert!(matches!(&error, DeviceError::TooWide { k: 32_768, needed: 327_680, .. }), "{error}");
}

#[test]
fn queues_time_work_and_refuse_what_is_not_theirs() {
    let Some(gpu) = gpu() else { return };
    use_queues(&gpu);
}

/// The driver is chosen when a process begins, so the test runs itself again.
#[test]
fn queues_of_an_emulated_gpu_time_work_and_refuse_what_is_not_theirs() {
    const INSIDE: &str = "TCQ4_ON_THE_EMULATED_GPU";
    if std::env::var_os(INSIDE).is_some() {
        use_queues(&gpu().unwrap());
        return;
    }
    if !cfg!(target_os = "linux") || compiler(None).is_none() {
        return;
    }
    let dir = Dir::new();
    let Some(driver) = emulated_driver(&dir, 0) else { return };
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["device::queues_of_an_emulated_gpu_time_work_and_refuse_what_is_not_theirs", "--exact"]);
    let done = again.env(INSIDE, "1").env("LD_LIBRARY_PATH", with_driver(&driver)).output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && told.contains("1 passed"), "{told}\n{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_model_encoded_on_an_emulated_gpu_has_the_same_bytes() {
    if !cfg!(target_os = "linux") || compiler(None).is_none() {
        return;
    }
    let dir = Dir::new();
    let Some(driver) = emulated_driver(&dir, 0) else { return };
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("in.gguf"));
    let quantize = "quantize in.gguf --embedding-type f16 --output-type f16 --fallback f16";
    for encoder in ["default", "parity"] {
        dir.tcq4(&format!("{quantize} cpu-{encoder}.gguf --encoder {encoder}")).ok();
        let told = on_emulated_gpu(
            &dir,
            &driver,
            &format!("{quantize} cuda-{encoder}.gguf --encoder {encoder} --device cuda --json"),
        );
        let record: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(record["device"]["used"], "cuda");
        assert!(dir.read(&format!("cpu-{encoder}.gguf")) == dir.read(&format!("cuda-{encoder}.gguf")), "{encoder}");
    }
}
