//! GPUs where models run: calibration, decoding and evaluation with `--device cuda`, on a device that the tests make up, on an emulated GPU, and where
//! there is none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tcq4::calib::{
    CalibrationOptions, InputMoments, MomentsRequest, Statistics, Summer, calibrate, calibrate_with_moments,
};
use tcq4::corpus::Corpus;
use tcq4::device::{SUMMED_ROWS, SumRows};
use tcq4::error::DeviceError;
use tcq4::llama::{Model, ModelOptions};
use tcq4::util::progress::NoProgress;

use crate::device::{compiler, emulated_driver, on_emulated_gpu, without_gpu};
use crate::support::Dir;
use crate::support::tiny_model::TinyModel;

/// A device that sums up as the definition says, and leaves every third call to the CPU.
#[derive(Debug, Default)]
struct Borrowed {
    calls: AtomicUsize,
}

impl Borrowed {
    fn takes(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) % 3 != 2
    }
}

impl SumRows for Borrowed {
    fn channel_sums(&self, rows: &[f32], columns: usize) -> Result<Option<Vec<f32>>, DeviceError> {
        let fold = |block: &[f32], start: f32, with: fn(f32, f32) -> f32| -> Vec<f32> {
            let channel = |j| block.iter().skip(j).step_by(columns).fold(start, |so_far, &x| with(so_far, x));
            (0..columns).map(channel).collect()
        };
        let of_block = |block: &[f32]| {
            [
                fold(block, f32::INFINITY, f32::min),
                fold(block, f32::NEG_INFINITY, f32::max),
                fold(block, 0.0, |sum, x| sum + x),
                fold(block, 0.0, |sum, x| sum + x.abs()),
                fold(block, 0.0, |sum, x| sum + x * x),
            ]
            .concat()
        };
        Ok(self.takes().then(|| rows.chunks(SUMMED_ROWS * columns).flat_map(of_block).collect()))
    }

    fn products(&self, rows: &[f32], columns: usize) -> Result<Option<Vec<f32>>, DeviceError> {
        let product = |i: usize, j: usize| rows.chunks(columns).fold(0.0, |sum, row| sum + row[i] * row[j]);
        let of_row = |i: usize| (i / 32 * 32..columns).map(move |j| product(i, j));
        Ok(self.takes().then(|| (0..columns).flat_map(of_row).collect()))
    }
}

/// A device that refuses.
#[derive(Debug)]
struct Broken;

impl SumRows for Broken {
    fn channel_sums(&self, _: &[f32], _: usize) -> Result<Option<Vec<f32>>, DeviceError> {
        Err(DeviceError::Driver { action: "run a kernel".into(), reason: "out of memory".into() })
    }

    fn products(&self, _: &[f32], _: usize) -> Result<Option<Vec<f32>>, DeviceError> {
        Ok(None)
    }
}

/// Runs of a small model with experts: rows that follow each other, and rows that are gathered.
struct Setup {
    model: Model,
    corpus: Corpus,
    _dir: Dir,
}

impl Setup {
    fn new() -> Self {
        let dir = Dir::new();
        TinyModel { experts: 4, ..TinyModel::default() }.write(&dir.file("tiny.gguf"));
        let model = Model::load(&dir.file("tiny.gguf"), &ModelOptions::default()).unwrap();
        let text: String = (0..260).map(|i: u32| char::from(b' ' + (i * i % 89) as u8)).collect();
        Self { model, corpus: Corpus::from_text("text", &text).unwrap(), _dir: dir }
    }

    fn run(&self, summer: Summer) -> tcq4::Result<(Statistics, Vec<Option<InputMoments>>)> {
        let request = |name: &str, columns, matrices, blocks| MomentsRequest {
            weights: vec![format!("blk.1.{name}.weight")],
            columns,
            matrices,
            per_matrix: matrices > 1,
            blocks,
        };
        let (even, odd): (Vec<u32>, Vec<u32>) = (0..512).partition(|channel| channel % 2 == 0);
        let requests = [request("attn_q", 256, 1, vec![]), request("ffn_down_exps", 512, 4, vec![even, odd])];
        let options = CalibrationOptions { ctx: 64, rows: 16, threads: 1, summer, ..CalibrationOptions::default() };
        calibrate_with_moments(&self.model, &self.corpus, "x", &options, &requests, &NoProgress)
    }
}

#[test]
fn what_a_device_sums_up_is_what_the_cpu_sums_up() {
    let setup = Setup::new();
    let device = Arc::new(Borrowed::default());
    let (statistics, moments) = setup.run(Summer::default()).unwrap();
    let (other_statistics, other_moments) = setup.run(Summer::on(Arc::clone(&device) as _)).unwrap();
    assert!(device.calls.load(Ordering::Relaxed) > 50);
    assert_eq!(other_statistics, statistics);
    let sums = |moments: &[Option<InputMoments>]| -> Vec<(u64, Vec<i64>)> {
        let blocks = moments.iter().flat_map(|moments| &moments.as_ref().unwrap().blocks);
        blocks.flat_map(|block| &block.sums).map(|sum| (sum.rows(), sum.sums().to_vec())).collect()
    };
    assert_eq!(sums(&moments).len(), 1 + 2 * 4);
    assert!(sums(&moments) == sums(&other_moments));
}

#[test]
fn a_device_that_fails_ends_the_calibration() {
    let setup = Setup::new();
    let options = CalibrationOptions { ctx: 64, summer: Summer::on(Arc::new(Broken)), ..CalibrationOptions::default() };
    let error = calibrate(&setup.model, &setup.corpus, "x", &options, &NoProgress).unwrap_err();
    assert_eq!(error.to_string(), "the GPU cannot run a kernel: out of memory");
}

const CALIBRATE: &str = "calibrate -m MODEL -c CALIBRATION -n 2 --ctx 128 --json";
const CONVERT: &str = "convert MODEL -c CALIBRATION -n 1 --ctx 128 --embedding-type f16 --output-type f16 --json";
const EVAL: &str = "eval q.gguf -f EVALUATION --ctx 64 --chunks 2 --json";
const DEQUANTIZE: &str = "dequantize q.gguf --type f32 --json";

/// Commands with their outputs; the name stands for the device.
fn runs(device: &str) -> [(String, Vec<String>); 3] {
    let files = |kinds: &[&str]| kinds.iter().map(|kind| format!("{device}-{kind}")).collect::<Vec<_>>();
    let calibrated = files(&["perms.json", "stats.gguf", "moments.gguf"]);
    let [perms, stats, moments] = &calibrated[..] else { unreachable!("three names") };
    let calibrate = format!("{CALIBRATE} -o {perms} --stats {stats} --second-moments {moments}");
    let decoded = files(&["f32.gguf"]);
    let dequantize = format!("{DEQUANTIZE} {}", decoded[0]);
    [(calibrate, calibrated), (dequantize, decoded), (EVAL.into(), Vec::new())]
}

/// A record without what tells devices and names apart.
fn measured(text: &str) -> Value {
    let mut record: Value = serde_json::from_str(text).unwrap();
    for key in ["device", "output", "outputs", "stats", "second_moments"] {
        record.as_object_mut().unwrap().remove(key);
    }
    record
}

/// Runs everything on the CPU and with `--device cuda` through `on`, which gives stdout; all files and numbers have to be the same. Gives the records' devices.
fn compare(dir: &Dir, on: impl Fn(&str) -> String) -> Vec<Value> {
    dir.tcq4(&format!("{CONVERT} -o q.gguf")).ok();
    let pairs = runs("cpu").into_iter().zip(runs("cuda"));
    pairs
        .map(|((cpu, cpu_files), (cuda, cuda_files))| {
            let expected = dir.tcq4(&cpu).ok().stdout;
            let found = on(&format!("{cuda} --device cuda"));
            assert_eq!(measured(&found), measured(&expected), "{cuda}");
            for (a, b) in cpu_files.iter().zip(&cuda_files) {
                assert!(dir.read(a) == dir.read(b), "{a} and {b} differ");
            }
            serde_json::from_str::<Value>(&found).unwrap()["device"].clone()
        })
        .collect()
}

#[test]
fn on_an_emulated_gpu_everything_comes_out_the_same() {
    if !cfg!(target_os = "linux") || compiler(None).is_none() {
        return;
    }
    let dir = Dir::new();
    let Some(driver) = emulated_driver(&dir, 0) else { return };
    let launched = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let devices = compare(&dir, |line| on_emulated_gpu(&dir, &driver, line));
    assert!(devices.iter().all(|device| device["used"] == "cuda" && device["fallback"].is_null()), "{devices:?}");
    let launches = launched(&dir.file("launches.txt"));
    for kernel in ["tcq4_statistics", "tcq4_gram", "tcq4_dequantize_f32"] {
        assert!(launches.lines().filter(|name| *name == kernel).count() > 3, "{kernel} was not launched");
    }
    // All in one: measured, encoded and, in the copy of the evaluation, decoded there.
    on_emulated_gpu(&dir, &driver, &format!("{CONVERT} -o cuda.gguf --device cuda"));
    assert!(dir.read("q.gguf") == dir.read("cuda.gguf"));
    assert!(launched(&dir.file("launches.txt")).contains("tcq4_encode_default_f32"));
}

#[test]
fn without_a_gpu_the_cpu_measures_and_decodes_and_that_is_said() {
    if !without_gpu() {
        return;
    }
    let dir = Dir::new();
    let devices = compare(&dir, |line| {
        let done = dir.tcq4(line).ok();
        assert_eq!(done.stderr.matches("note: --device cuda: ").count(), 1, "{}", done.stderr);
        assert!(done.stderr.contains("; the CPU does the work"), "{}", done.stderr);
        done.stdout
    });
    for device in devices {
        assert_eq!((&device["asked"], &device["used"]), (&"cuda".into(), &"cpu".into()));
        assert!(device["fallback"].is_string(), "{device}");
    }
    let done = dir.tcq4(&format!("{CONVERT} -o again.gguf --device cuda")).ok();
    assert_eq!(done.stderr.matches("note: --device cuda: ").count(), 1, "said once for all steps: {}", done.stderr);
    assert!(dir.read("q.gguf") == dir.read("again.gguf"));
}
