//! Sequential conversion: the loaded model with replaced weights against a model loaded from a file, the conversion against a procedure step by
//! step, and runs that are killed. Needs llama.cpp.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use half::f16;
use tcq4::calib::{CalibrationOptions, InputMoments, MomentsRequest, Shard, calibrate, second_moments};
use tcq4::convert::{
    Checkpoint, Codes, Compensation, Conversion, Job, PlanSettings, Provenance, SecondMoments, Sequential, Stream,
    Target, convert, dequantize, output_metadata, read_rows,
};
use tcq4::corpus::Corpus;
use tcq4::error::{Error, LlamaError};
use tcq4::gguf::{GgmlType, Sharding, Source};
use tcq4::llama::{Context, ContextOptions, Logits, Model, ModelOptions, Rewriter};
use tcq4::quant::rounding::Rounding;
use tcq4::quant::{Activations, Apply, InputRounding, Order, Orders, Scales, Settings, Simulation, Transform, prepare};
use tcq4::tcq::{Codec, Encoder};
use tcq4::util::progress::NoProgress;

use crate::cli::assert_same_tensors;
use crate::support::Dir;
use crate::support::mount::Mount;
use crate::support::tiny_model::TinyModel;

fn writable(path: &Path) -> Model {
    Model::load(path, &ModelOptions { writable: true, ..ModelOptions::default() }).unwrap()
}

fn logits(model: &Model) -> Vec<f32> {
    let mut context = Context::new(model, &ContextOptions { threads: 1, ..ContextOptions::new(48) }).unwrap();
    let tokens: Vec<i32> = (0..48).map(|i| 3 + (i * 11 + 7) % 256).collect();
    context.decode(&tokens, Logits::All).unwrap();
    context.logits().to_vec()
}

/// Replaces every tensor of a loaded model by that of another, in pieces: it computes what the other does, to the bit.
#[test]
fn a_model_with_all_weights_replaced_is_the_other_model() {
    for (experts, output, ty) in [(0, true, GgmlType::F16), (4, false, GgmlType::BF16), (0, false, GgmlType::F32)] {
        let dir = Dir::new();
        let tiny = |seed| TinyModel { experts, output, ty, seed, ..TinyModel::default() };
        tiny(1).write(&dir.file("a.gguf"));
        tiny(2).write(&dir.file("b.gguf"));
        let other = Source::open(&dir.file("b.gguf")).unwrap();
        let mut model = writable(&dir.file("a.gguf"));
        let (own, expected) =
            (logits(&model), logits(&Model::load(&dir.file("b.gguf"), &ModelOptions::default()).unwrap()));
        for tensor in other.tensors() {
            let data = other.data(tensor);
            for (index, piece) in data.chunks(data.len() / 2).enumerate() {
                assert!(model.replace(&tensor.name, index * (data.len() / 2), piece).unwrap(), "{}", tensor.name);
            }
        }
        assert!(logits(&model) == expected && own != expected, "{experts} experts, {ty}");
    }
}

#[test]
fn weights_are_replaced_only_where_that_is_possible() {
    let dir = Dir::new();
    TinyModel::default().write(&dir.file("a.gguf"));
    let mut model = writable(&dir.file("a.gguf"));
    let before = logits(&model);
    assert!(!model.replace("blk.9.attn_q.weight", 0, &[0; 4]).unwrap());
    let bytes = 256 * 256 * 2;
    for offset in [bytes - 3, bytes, usize::MAX] {
        let error = model.replace("blk.0.attn_q.weight", offset, &[0; 4]).unwrap_err();
        assert!(matches!(error, Error::Llama(LlamaError::Weight { .. })), "{error}");
    }
    assert!(logits(&model) == before);
    let mut mapped = Model::load(&dir.file("a.gguf"), &ModelOptions::default()).unwrap();
    let error = mapped.replace("blk.0.attn_q.weight", 0, &[0; 4]).unwrap_err().to_string();
    assert_eq!(error, "weight `blk.0.attn_q.weight` cannot be replaced: the model was not loaded for that");
}

/// A model that runs, as the command has it.
struct Running {
    model: RwLock<Model>,
    activations: Activations,
    simulation: Mutex<Simulation>,
    corpus: Corpus,
    /// The weights whose inputs are measured.
    only: fn(&str) -> bool,
}

fn options() -> CalibrationOptions {
    CalibrationOptions { ctx: 32, rows: 16, threads: 1, ..CalibrationOptions::default() }
}

fn corpus() -> Corpus {
    let text: String = (0..645).map(|i: u32| char::from(b' ' + (i * i % 89) as u8)).collect();
    Corpus::from_text("text", &text).unwrap()
}

fn codec() -> Codec {
    Codec::new(Encoder::Default)
}

impl Running {
    fn new(path: &Path, activations: Activations) -> Self {
        let simulation = Mutex::new(Simulation::of(codec(), []));
        Self { model: RwLock::new(writable(path)), activations, simulation, corpus: corpus(), only: |_| true }
    }
}

impl SecondMoments for Running {
    fn measure(&self, requests: &[MomentsRequest]) -> tcq4::Result<Vec<Option<InputMoments>>> {
        let wanted = |request: &&MomentsRequest| (self.only)(&request.weights[0]);
        let asked: Vec<MomentsRequest> = requests.iter().filter(wanted).cloned().collect();
        let mut simulation = self.simulation.lock().unwrap();
        let rewriter = simulation.rounds().then_some(&mut *simulation as &mut dyn Rewriter);
        let (model, options) = (self.model.read().unwrap(), options());
        let found = second_moments(&model, &self.corpus, &options, &asked, Shard::WHOLE, rewriter, &NoProgress)?;
        let mut found = found.into_iter();
        Ok(requests.iter().map(|request| wanted(&request).then(|| found.next().flatten()).flatten()).collect())
    }
}

impl Stream for Running {
    fn replace(&self, tensor: &str, offset: u64, bytes: &[u8]) -> tcq4::Result<bool> {
        self.model.write().unwrap().replace(tensor, offset as usize, bytes)
    }

    fn round(&self, tensor: &str, transform: &Transform) {
        let way = InputRounding::before(self.activations, Some(transform));
        self.simulation.lock().unwrap().add(tensor.to_owned(), way);
    }
}

/// What stays the same from step to step: the original, and what is decided once from it.
struct Ground {
    source: Source,
    plan: Conversion,
    transforms: BTreeMap<String, Transform>,
}

fn ground(path: &Path) -> Ground {
    let source = Source::open(path).unwrap();
    let keep = Some(GgmlType::F16);
    let settings = PlanSettings { embedding_type: keep, output_type: keep, ..PlanSettings::default() };
    let plan = Conversion::new(&source, &settings).unwrap();
    let model = Model::load(path, &ModelOptions::default()).unwrap();
    let statistics = calibrate(&model, &corpus(), "", &options(), &NoProgress).unwrap();
    let settings = Settings {
        targets: plan.tensors.iter().filter(|t| t.is_tcq4()).map(|t| t.name.clone()).collect(),
        scales: Scales::ClosedForm,
        orders: Orders::Fixed(Order::Zigzag),
        apply: Apply::Runtime,
        activations: Activations::Int8,
        codec: codec(),
    };
    let read = |tensor: &_, first, out: &mut [f32]| read_rows(&source, tensor, first, out);
    let transforms = prepare(&source, &read, Some(&statistics), &settings, &NoProgress).unwrap().transforms;
    Ground { source, plan, transforms }
}

/// Converts the original, by second moments of a running model.
fn gptq(ground: &Ground, moments: &Running, sequential: Option<Sequential<'_>>, output: &Path) {
    let Ground { source, plan, transforms } = ground;
    let provenance = Provenance { encoder: Encoder::Default, recipe: "{}".into(), calibration: Vec::new() };
    let metadata = output_metadata(source, plan, transforms, &provenance);
    let rounding = Rounding { feedback: true, descents: 1, refit: true };
    let codes = Codes::Gptq(Compensation {
        moments,
        rounding,
        damp: 0.01,
        act_order: true,
        noise: None,
        memory: 1 << 20,
        sequential,
    });
    let job = Job { source, plan, transforms, codec: codec(), device: None, codes, statistics: None, metadata };
    let target = Target { path: output.to_path_buf(), force: true, sharding: Sharding::Single };
    convert(&job, &target, &NoProgress).unwrap();
}

/// The bytes of a converted block, taken back to what the original has in their place.
fn in_the_original(dir: &Dir, ground: &Ground, file: &str, name: &str) -> Vec<u8> {
    let output = Source::open(&dir.file(file)).unwrap();
    dequantize(&output, &dir.file("plain.gguf"), GgmlType::F32, true, codec(), &NoProgress).unwrap();
    let plain = Source::open(&dir.file("plain.gguf")).unwrap();
    let tensor = plain.tensor(name).unwrap();
    let (columns, mut values) = (tensor.columns() as usize, vec![0.0; tensor.elements() as usize]);
    plain.read_rows(tensor, 0, &mut values).unwrap();
    let identity = Transform::default();
    let transform = ground.transforms.get(name).unwrap_or(&identity);
    let value = |(at, value): (usize, &f32)| {
        let row = transform.row_scale.as_ref().map_or(1.0, |scale| scale[at / columns]);
        let column = transform.column_scale.as_ref().map_or(1.0, |scale| scale[at % columns]);
        f16::from_f32(value / row / column).to_le_bytes()
    };
    values.iter().enumerate().flat_map(value).collect()
}

#[test]
fn it_is_what_comes_of_going_block_by_block_through_files() {
    for (experts, activations) in [(0, Activations::None), (0, Activations::Int4), (4, Activations::Int4Group32)] {
        let dir = Dir::new();
        let tiny = TinyModel { layers: 3, experts, ..TinyModel::default() };
        tiny.write(&dir.file("step0.gguf"));
        let ground = ground(&dir.file("step0.gguf"));
        let running = Running::new(&dir.file("step0.gguf"), activations);
        let checkpoint = Checkpoint { folder: dir.file("out.partial"), resume: false };
        gptq(&ground, &running, Some(Sequential { stream: &running, blocks: 1, checkpoint }), &dir.file("out.gguf"));
        let out = Source::open(&dir.file("out.gguf")).unwrap();

        let mut replaced: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut compared = 0;
        for block in 0..3 {
            let (model, file) = (format!("step{block}.gguf"), format!("out{block}.gguf"));
            let mut moments = Running::new(&dir.file(&model), activations);
            moments.only = [
                |name: &str| name.starts_with("blk.0."),
                |name: &str| name.starts_with("blk.1."),
                |name: &str| name.starts_with("blk.2."),
            ][block];
            for name in replaced.keys() {
                moments.round(name, ground.transforms.get(name).unwrap_or(&Transform::default()));
            }
            gptq(&ground, &moments, None, &dir.file(&file));
            let step = Source::open(&dir.file(&file)).unwrap();
            for planned in ground.plan.tensors.iter().filter(|t| t.is_tcq4() && (moments.only)(&t.name)) {
                let bytes = |file: &Source| file.data(file.tensor(&planned.name).unwrap()).to_vec();
                assert!(bytes(&out) == bytes(&step), "{}, {activations}", planned.name);
                replaced.insert(planned.name.clone(), in_the_original(&dir, &ground, &file, &planned.name));
                compared += 1;
            }
            tiny.write_edited(&dir.file(&format!("step{}.gguf", block + 1)), &Sharding::Single, |name, data| {
                if let Some(bytes) = replaced.get(name) {
                    data.copy_from_slice(bytes);
                }
            });
        }
        assert_eq!(compared, 21);
        let differs = |name: &str| {
            let first = Source::open(&dir.file("out0.gguf")).unwrap();
            gptq(&ground, &Running::new(&dir.file("step0.gguf"), Activations::None), None, &dir.file("at-once.gguf"));
            let at_once = Source::open(&dir.file("at-once.gguf")).unwrap();
            drop(first);
            out.data(out.tensor(name).unwrap()) != at_once.data(at_once.tensor(name).unwrap())
        };
        assert!(!differs("blk.0.attn_q.weight") && differs("blk.1.attn_q.weight"), "it makes a difference");
    }
}

const LINE: &str = "convert MODEL -n 4 --ctx 64 --rounding gptq --sequential";

#[test]
fn neither_memory_nor_threads_change_a_byte_of_it() {
    let dir = Dir::new();
    dir.tcq4(&format!("{LINE} -o one.gguf --layer-batch 2 --activations int4 --threads 1")).ok();
    dir.tcq4(&format!("{LINE} -o many.gguf --layer-batch 2 --activations int4 --threads 2 --memory 12M")).ok();
    assert_same_tensors(&dir, "one.gguf", "many.gguf");
    let recipe = Source::open(&dir.file("one.gguf")).unwrap().metadata().get_str("tcq4.recipe").unwrap().into_owned();
    let recipe: serde_json::Value = serde_json::from_str(&recipe).unwrap();
    assert_eq!(recipe["layer-batch"], 2, "{recipe}");
    dir.tcq4("verify one.gguf --against MODEL").ok();
    assert_eq!(dir.names(), ["many.gguf", "one.gguf"], "what is done needs no checkpoint");
}

#[test]
fn with_everything_in_one_batch_there_is_no_sequence() {
    let dir = Dir::new();
    let keep = "--embedding-type f16 --output-type f16 --activations int4";
    dir.tcq4(&format!("{LINE} -o one.gguf --layer-batch 4 {keep}")).ok();
    dir.tcq4(&format!("{} -o plain.gguf {keep}", LINE.replace("--sequential", ""))).ok();
    assert_same_tensors(&dir, "one.gguf", "plain.gguf");
    dir.tcq4(&format!("{LINE} -o four.gguf {keep}")).ok();
    let diff = dir.tcq4("diff one.gguf four.gguf --json").record("diff");
    let differing = diff["tensors"].as_array().unwrap();
    assert_eq!(differing.len(), 21, "all but the first of four blocks, as one block is a batch: {diff}");
}

/// Starts a conversion and kills it when so many batches are done; whether it was still running.
fn killed_after(dir: &Dir, line: &str, batches: u32) -> bool {
    let mut child = dir.start(line);
    let begun = Instant::now();
    while !dir.file(&format!("out.gguf.partial/batch-{batches:04}")).exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "it never came to batch {batches}");
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

#[test]
fn killed_at_any_point_it_resumes_to_the_same_bytes() {
    let dir = Dir::new();
    let line = |output: &str| format!("{LINE} -n 16 -o {output} --layer-batch 1").replace("-n 4 ", "");
    dir.tcq4(&line("whole.gguf")).ok();
    let whole = dir.read("whole.gguf");
    for batches in [1, 2, 3] {
        assert!(killed_after(&dir, &line("out.gguf"), batches), "the run ended before it was killed");
        dir.tcq4(&line("out.gguf")).fails(
            3,
            "error: out.gguf.partial: this is left of a conversion that was interrupted\n\
             hint: --resume goes on with it; --force begins anew and replaces it",
        );
        let done = dir.tcq4(&format!("{} --resume --threads 2", line("out.gguf"))).ok();
        let known = done.stderr.matches("was done before").count();
        assert!((batches as usize..=4).contains(&known), "{}", done.stderr);
        assert!(dir.read("out.gguf") == whole);
        assert_eq!(dir.names(), ["out.gguf", "whole.gguf"]);
        std::fs::remove_file(dir.file("out.gguf")).unwrap();
    }
    // Killed twice on the way, at times that nobody chose.
    for pause in [150, 400] {
        let mut child = dir.start(&format!("{} --resume", line("out.gguf")));
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    dir.tcq4(&format!("{} --resume --force", line("out.gguf"))).ok();
    assert!(dir.read("out.gguf") == whole);
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let dir = Dir::new();
    let line = format!("{LINE} -n 16 -o out.gguf --layer-batch 1").replace("-n 4 ", "");
    assert!(killed_after(&dir, &line, 1));
    std::fs::remove_file(dir.file(".out.gguf.part")).unwrap(); // the refused runs below would use it up
    let other = "error: out.gguf.partial/batch-0001: the checkpoint cannot be continued: it is of another model, text, or setting\n\
                 hint: pass --force instead of --resume to begin anew";
    for options in ["--damp 0.02", "--layer-batch 2", "-c EVALUATION", "--activations int4", "--output-type f16"] {
        let line = line.replace("--layer-batch 1", if options.contains("batch") { "" } else { "--layer-batch 1" });
        dir.tcq4(&format!("{line} --resume {options}")).fails(3, other);
    }
    let path = dir.file("out.gguf.partial/batch-0001");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let damaged = "error: out.gguf.partial/batch-0001: the checkpoint cannot be continued: it is damaged";
    dir.tcq4(&format!("{line} --resume")).fails_like(3, damaged);
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    dir.tcq4(&format!("{line} --resume")).fails_like(3, damaged);
    std::fs::remove_dir_all(dir.file("out.gguf.partial")).unwrap();
    dir.write("out.gguf.partial", b"mine");
    let message = "error: out.gguf.partial: the checkpoint cannot be continued: it is no folder";
    dir.tcq4(&format!("{line} --resume")).fails_like(3, message);
    dir.tcq4(&format!("{line} --force")).fails_like(3, message);
    assert_eq!(dir.read("out.gguf.partial"), b"mine");
    for (line, message) in [
        ("convert MODEL -o x.gguf --sequential", "error: --sequential measures what only GPTQ rounds by"),
        (
            "convert MODEL -o x.gguf --resume",
            "error: --layer-batch is of --sequential, and --resume of --sequential or --stats",
        ),
        (
            "convert MODEL -o x.gguf --preset best --layer-batch 2",
            "error: --layer-batch is of --sequential, and --resume of --sequential or --stats",
        ),
    ] {
        dir.tcq4(line).fails_like(2, message);
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let Some(mount) = Mount::tmpfs("size=2300k") else {
        return crate::support::skip("file systems cannot be mounted here");
    };
    let dir = Dir::new();
    let output = mount.path.join("out.gguf");
    let line = format!("{LINE} -o {} --layer-batch 2", output.display());
    let done = dir.tcq4(&line);
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert!(done.error().contains("batch-0001: cannot reserve the space for this file"), "{}", done.stderr);
    assert!(!output.exists() && !mount.path.join(".out.gguf.part").exists());
}

#[test]
fn the_plan_counts_the_runs_of_every_batch() {
    let dir = Dir::new();
    let effort = |options: &str| {
        let done = dir.tcq4(&format!("{LINE} -o x.gguf --dry-run --json {options}")).ok();
        done.record("plan")["effort"].clone()
    };
    // Statistics, and the four blocks in batches of one and of two.
    assert_eq!(effort("--layer-batch 1")["passes"], 5);
    assert_eq!(effort("--layer-batch 2")["passes"], 3);
    let moments = |effort: &serde_json::Value| effort["memory"]["second_moments"].as_u64().unwrap();
    assert!(moments(&effort("--layer-batch 1")) < moments(&effort("--layer-batch 4")));
}
