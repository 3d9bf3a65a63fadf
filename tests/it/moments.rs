//! Second moments: their files, what is refused, and what conversions make of them. The runs of the model need the `llama` feature, the rest does not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tcq4::calib::hessian::{Hessian, Unit};
use tcq4::calib::moments_store::{self, MomentsOrigin, MomentsWriter};
use tcq4::calib::{Block, InputMoments, MomentsFile, MomentsRequest, store};
use tcq4::convert::{
    Codes, Compensation, Conversion, Converted, Job, PlanSettings, Provenance, SecondMoments, Target,
    compensation_cost, compensation_limits, convert, output_metadata,
};
use tcq4::gguf::{GgmlType, Metadata, Plan, Sharding, Source, TensorSpec, Writer};
use tcq4::quant::rounding::Rounding;
use tcq4::tcq::{Codec, Encoder};
use tcq4::util::progress::NoProgress;
use tcq4::{Class, Error, Result};

use crate::support::Dir;
use crate::support::tiny_model::TinyModel;

/// Channels and experts of the inputs of the files here.
const INPUTS: [(usize, usize); 2] = [(64, 1), (32, 3)];
/// Chunks of a run.
const CHUNKS: u32 = 6;

fn origin(chunks: &[i32]) -> MomentsOrigin {
    let (model, text) = ("0123".to_owned(), "4567".to_owned());
    MomentsOrigin { model, text, chunks: chunks.to_vec(), chunk_count: CHUNKS, datasets: vec!["a.txt".into()] }
}

fn requests() -> Vec<MomentsRequest> {
    let of = |(index, &(columns, matrices)): (usize, &(usize, usize))| MomentsRequest {
        weights: vec![format!("blk.{index}.a.weight"), format!("blk.{index}.b.weight")],
        columns,
        matrices,
        per_matrix: matrices > 1,
        blocks: Vec::new(),
    };
    INPUTS.iter().enumerate().map(of).collect()
}

/// Rows of a seed that decay and hang together, as activations do.
fn rows(seed: u64, count: usize, columns: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut rows: Vec<f32> = (0..count * columns).map(|_| random.random_range(-1.0f32..1.0)).collect();
    for row in rows.chunks_exact_mut(columns) {
        for j in 1..columns {
            row[j] = row[j] * (1.0 + (j % 7) as f32) + 0.8 * row[j - 1];
        }
    }
    rows
}

/// The sums of some chunks, made up: in each one every expert sees five rows, the last one none in chunk 1.
fn moments(index: usize, chunks: &[i32]) -> InputMoments {
    let (columns, matrices) = INPUTS[index];
    let unit = Unit::new(-20).unwrap();
    let mut moments = InputMoments {
        rows: vec![0; matrices],
        blocks: vec![Block { channels: None, sums: vec![Hessian::new(columns, unit); matrices] }],
    };
    for &chunk in chunks {
        for matrix in (0..matrices).filter(|&matrix| matrix == 0 || chunk != 1) {
            let data = rows(1000 * chunk as u64 + matrix as u64, 5, columns);
            let offsets: Vec<usize> = (0..5).map(|t| t * columns).collect();
            moments.blocks[0].sums[matrix].add(&data, &offsets, None).unwrap();
            moments.rows[matrix] += 5;
        }
    }
    moments
}

fn write(dir: &Dir, name: &str, chunks: &[i32]) -> PathBuf {
    let path = dir.file(name);
    let writer = MomentsWriter::create(&path, &origin(chunks), &requests(), false, &[]).unwrap();
    (0..INPUTS.len()).for_each(|index| writer.write(index, Some(&moments(index, chunks))).unwrap());
    writer.commit().unwrap();
    path
}

#[test]
fn sums_come_back() {
    let dir = Dir::new();
    let path = write(&dir, "a.gguf", &[0, 2]);
    let file = MomentsFile::open(&path).unwrap();
    assert_eq!((file.origin(), file.origin().is_whole()), (&origin(&[0, 2]), false));
    for (index, request) in requests().iter().enumerate() {
        let (found, expected) = (file.input(&request.weights[1..]).unwrap(), moments(index, &[0, 2]));
        assert_eq!(found.rows, expected.rows);
        for (found, expected) in found.blocks[0].sums.iter().zip(&expected.blocks[0].sums) {
            assert_eq!((found.sums(), found.unit()), (expected.sums(), expected.unit()));
        }
        let channels: Vec<u32> = (0..request.columns as u32).rev().collect();
        assert_eq!(found.mean(&channels, Some((0, 0.3))), expected.mean(&channels, Some((0, 0.3))));
    }
    assert!(file.input(&["blk.9.a.weight".into()]).is_none());
    let error = MomentsWriter::create(&path, &origin(&[0]), &requests(), false, &[]).err().unwrap();
    assert_eq!(dir.message(&error), "a.gguf: the file exists already");
}

#[test]
fn inputs_that_no_graph_reads_are_kept_as_such() {
    let dir = Dir::new();
    let path = dir.file("a.gguf");
    let writer = MomentsWriter::create(&path, &origin(&[0]), &requests(), false, &[]).unwrap();
    writer.write(0, None).unwrap();
    writer.write(1, Some(&moments(1, &[0]))).unwrap();
    writer.commit().unwrap();
    let file = MomentsFile::open(&path).unwrap();
    assert!(file.input(&requests()[0].weights).is_none() && file.input(&requests()[1].weights).is_some());
}

#[test]
fn parts_in_any_division_and_order_are_the_whole_byte_for_byte() {
    let dir = Dir::new();
    let whole = std::fs::read(write(&dir, "whole.gguf", &[0, 1, 2, 3, 4, 5])).unwrap();
    for (case, parts) in [
        vec![vec![0, 1, 2, 3, 4, 5]],
        vec![vec![3, 4, 5], vec![0, 1, 2]],
        vec![vec![1, 5], vec![2, 4], vec![0, 3]],
        (0..6).rev().map(|chunk| vec![chunk]).collect(),
    ]
    .iter()
    .enumerate()
    {
        let name = |part: usize| format!("{case}.{part}.gguf");
        let paths: Vec<PathBuf> =
            parts.iter().enumerate().map(|(part, chunks)| write(&dir, &name(part), chunks)).collect();
        let merged = dir.file(&format!("{case}.gguf"));
        assert!(moments_store::merge(&paths, &merged, false).unwrap().is_whole());
        assert!(std::fs::read(merged).unwrap() == whole, "case {case}");
    }
}

#[test]
fn what_does_not_belong_together_is_not_added_up() {
    let dir = Dir::new();
    let (a, b) = (write(&dir, "a.gguf", &[0, 1]), write(&dir, "b.gguf", &[1, 2]));
    let message =
        |paths: &[PathBuf]| dir.message(&moments_store::merge(paths, &dir.file("c.gguf"), false).unwrap_err());
    assert_eq!(message(&[a.clone(), b.clone()]), "b.gguf: chunk 1 of the text is in a.gguf too");
    let other = dir.file("other.gguf");
    let writer =
        MomentsWriter::create(&other, &MomentsOrigin { text: "89".into(), ..origin(&[3]) }, &requests(), false, &[]);
    let writer = writer.unwrap();
    (0..INPUTS.len()).for_each(|index| writer.write(index, None).unwrap());
    writer.commit().unwrap();
    assert_eq!(
        message(&[a, other.clone()]),
        "other.gguf: these second moments are of another text or setting: expected 4567, got 89"
    );
    assert!(!dir.file("c.gguf").exists());
    let error = MomentsFile::open(&other).unwrap().check_origin(&origin(&[3])).unwrap_err();
    assert_eq!(error.class(), Class::Refused);
}

/// The bytes of a sound file, taken apart: keys, tensors, their data.
struct Parts {
    keys: Metadata,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
}

fn parts(path: &Path) -> Parts {
    let source = Source::open(path).unwrap();
    let tensors = source.tensors().iter().map(|info| (info.spec(), source.data(info).to_vec())).collect();
    Parts { keys: source.metadata().clone(), tensors }
}

/// What is done to a file.
type Edit = Box<dyn FnOnce(&mut Parts)>;

/// The message with which an edited file is refused.
fn refusal(edit: impl FnOnce(&mut Parts)) -> String {
    let dir = Dir::new();
    let mut parts = parts(&write(&dir, "good.gguf", &[0, 2]));
    edit(&mut parts);
    let specs = parts.tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let path = dir.file("bad.gguf");
    let writer = Writer::create(&path, &Plan::new(&parts.keys, specs, 32).unwrap(), false, &[]).unwrap();
    parts.tensors.iter().enumerate().for_each(|(at, (_, data))| writer.write(at, 0, data).unwrap());
    writer.commit().unwrap();
    let error = MomentsFile::open(&path).unwrap_err();
    assert_eq!(error.class(), Class::Refused);
    assert!(error.hint().is_some());
    dir.message(&error)
}

#[test]
fn hostile_files_are_refused() {
    let cases: Vec<(Edit, &str)> = vec![
        (
            Box::new(|p| p.keys.set("general.type", "imatrix")),
            "bad.gguf: expected second moments (general.type `tcq4.second-moments`), got `imatrix`",
        ),
        (
            Box::new(|p| p.keys.set("tcq4.moments.version", 2u32)),
            "bad.gguf: expected second moments of version 1, got 2",
        ),
        (
            Box::new(|p| p.keys.set("tcq4.moments.chunks", &[2i32, 0][..])),
            "bad.gguf: `tcq4.moments.chunks`: expected ascending places of chunks, got [2, 0] of 6",
        ),
        (
            Box::new(|p| p.keys.set("tcq4.moments.chunks", &[0i32, 6][..])),
            "bad.gguf: `tcq4.moments.chunks`: expected ascending places of chunks, got [0, 6] of 6",
        ),
        (
            Box::new(|p| {
                p.keys.set(
                    "tcq4.moments.inputs",
                    "[{\"weights\":[],\"columns\":33,\"matrices\":1,\"per_matrix\":false}]",
                );
            }),
            "bad.gguf: `tcq4.moments.inputs`: expected a multiple of 32 columns and at least one matrix, got Input { weights: [], columns: 33, matrices: 1, per_matrix: false }",
        ),
        (
            Box::new(|p| {
                p.keys
                    .set("tcq4.moments.inputs", "[{\"weights\":[],\"columns\":64,\"matrices\":2,\"per_matrix\":true}]");
            }),
            "bad.gguf: tensor `input.0.sums`: expected i64 of the shape [3072, 2], got i64 of the shape [3072]",
        ),
        (
            Box::new(|p| p.tensors[0].0.ty = GgmlType(26)),
            "bad.gguf: tensor `input.0.sums`: expected i64 of the shape [3072], got i32 of the shape [3072]",
        ),
        (
            Box::new(|p| p.tensors[1].0.name = "x".into()),
            "bad.gguf: tensor `input.0.rows`: expected i64 of the shape [1], got no such tensor",
        ),
        (
            Box::new(|p| p.tensors[1].1 = (-5i64).to_le_bytes().to_vec()),
            "bad.gguf: tensor `input.0.rows`: expected numbers of rows, got -5",
        ),
        (
            Box::new(|p| p.tensors[2].1 = 201i32.to_le_bytes().to_vec()),
            "bad.gguf: tensor `input.0.unit`: expected a power of two within ±200, got 201",
        ),
        (
            // The last number is the last element of the diagonal.
            Box::new(|p| *p.tensors[0].1.last_chunk_mut().unwrap() = (-7i64).to_le_bytes()),
            "bad.gguf: tensor `input.0.sums`: expected no negative number on the diagonal, got -7 at 63",
        ),
    ];
    for (edit, message) in cases {
        // A tensor of half the width has half the bytes.
        let edit = |parts: &mut Parts| {
            edit(parts);
            if parts.tensors[0].0.ty == GgmlType(26) {
                let half = parts.tensors[0].1.len() / 2;
                parts.tensors[0].1.truncate(half);
            }
        };
        assert_eq!(refusal(edit), message);
    }
}

#[test]
fn damaged_files_never_panic_and_cut_ones_are_refused() {
    let dir = Dir::new();
    let good = std::fs::read(write(&dir, "good.gguf", &[0])).unwrap();
    let header = good.len() - INPUTS.iter().map(|&(k, m)| 8 * Hessian::len(k) * m).sum::<usize>();
    for cut in (0..good.len()).step_by(509) {
        let path = dir.write("cut.gguf", &good[..cut]);
        assert!(MomentsFile::open(&path).is_err(), "cut at {cut}");
    }
    for at in 0..header {
        let mut bad = good.clone();
        bad[at] ^= 0x81;
        let path = dir.write("bad.gguf", &bad);
        if let Ok(file) = MomentsFile::open(&path) {
            for request in requests() {
                let _ = file.input(&request.weights).map(|moments| moments.rows_seen());
            }
        }
    }
    for name in ["none.gguf", "empty.gguf"] {
        if name == "empty.gguf" {
            dir.write(name, b"");
        }
        let error = MomentsFile::open(&dir.file(name)).unwrap_err();
        assert!(dir.message(&error).starts_with(name), "{error}");
    }
}

/// Sums of made-up rows for every input, by what is asked for.
struct MadeUp {
    /// Rows that each matrix sees.
    rows: Vec<usize>,
    asked: std::sync::Mutex<Vec<Vec<MomentsRequest>>>,
}

impl MadeUp {
    fn new(rows: &[usize]) -> Self {
        Self { rows: rows.to_vec(), asked: std::sync::Mutex::default() }
    }
}

impl SecondMoments for MadeUp {
    fn measure(&self, requests: &[MomentsRequest]) -> Result<Vec<Option<InputMoments>>> {
        self.asked.lock().unwrap().push(requests.to_vec());
        Ok(requests.iter().map(|request| Some(self.made_up(request))).collect())
    }
}

impl MadeUp {
    fn made_up(&self, request: &MomentsRequest) -> InputMoments {
        let all = vec![(0..request.columns as u32).collect()];
        let blocks = if request.blocks.is_empty() { &all } else { &request.blocks };
        let unit = Unit::new(-20).unwrap();
        let sums = |channels: &Vec<u32>| Block {
            channels: Some(channels.clone()),
            sums: vec![Hessian::new(channels.len(), unit); request.owners()],
        };
        let mut moments = InputMoments { rows: Vec::new(), blocks: blocks.iter().map(sums).collect() };
        for matrix in 0..request.matrices {
            let count = self.rows[matrix % self.rows.len()];
            let data = rows(77 + matrix as u64, count, request.columns);
            let offsets: Vec<usize> = (0..count).map(|t| t * request.columns).collect();
            moments.rows.push(count as u64);
            for block in &mut moments.blocks {
                let owner = if block.sums.len() > 1 { matrix } else { 0 };
                block.sums[owner].add(&data, &offsets, block.channels.as_deref()).unwrap();
            }
        }
        moments
    }
}

fn convert_with(source: &Source, output: &Path, moments: &dyn SecondMoments, memory: u64) -> (Converted, u64) {
    let keep = Some(GgmlType::F16);
    let settings =
        PlanSettings { embedding_type: keep, output_type: keep, fallback: GgmlType::F16, ..PlanSettings::default() };
    let plan = Conversion::new(source, &settings).unwrap();
    let transforms = BTreeMap::new();
    let provenance = Provenance { encoder: Encoder::Default, recipe: "{}".into(), calibration: Vec::new() };
    let metadata = output_metadata(source, &plan, &transforms, &provenance);
    let rounding = Rounding { feedback: true, descents: 1, refit: true };
    let (damp, act_order, noise, sequential) = (0.01, true, None, None);
    let codes = Codes::Gptq(Compensation { moments, rounding, damp, act_order, noise, memory, sequential });
    let codec = Codec::new(Encoder::Default);
    let job =
        Job { source, plan: &plan, transforms: &transforms, codec, device: None, codes, statistics: None, metadata };
    let target = Target { path: output.to_path_buf(), force: false, sharding: Sharding::Single };
    let (_, cost) = compensation_cost(source, &plan, memory);
    let limits = compensation_limits(source, &plan, memory);
    let converted = convert(&job, &target, &NoProgress).unwrap();
    let told = |name: &String| limits.blocks.iter().any(|(limited, _)| limited == name);
    for loss in &converted.losses {
        let narrow = loss.moments.as_ref().unwrap().columns_together.is_some();
        assert_eq!(told(&loss.name), narrow, "{}", loss.name);
    }
    (converted, cost)
}

/// The same sums, of all channels whatever is asked for: what a file gives.
struct Whole(MadeUp);
impl SecondMoments for Whole {
    fn measure(&self, requests: &[MomentsRequest]) -> Result<Vec<Option<InputMoments>>> {
        let whole = |request: &MomentsRequest| MomentsRequest { blocks: Vec::new(), ..request.clone() };
        let all = |mut moments: InputMoments| {
            moments.blocks[0].channels = None;
            Some(moments)
        };
        Ok(requests.iter().map(|request| all(self.0.made_up(&whole(request)))).collect())
    }
}

#[test]
fn columns_that_do_not_fit_are_rounded_in_blocks() {
    let dir = Dir::new();
    let path = dir.file("model.gguf");
    TinyModel { feed_forward: 1536, layers: 1, ..TinyModel::default() }.write(&path);
    let source = Source::open(&path).unwrap();
    let of = |converted: &Converted| {
        let loss = converted.losses.iter().find(|loss| loss.name == "blk.0.ffn_down.weight").unwrap();
        (loss.output.unwrap(), loss.moments.clone().unwrap())
    };
    let (whole, cost) = convert_with(&source, &dir.file("whole.gguf"), &MadeUp::new(&[3000]), 1 << 30);
    assert!(cost > 16 * 1536 * 1536);
    let (output, used) = of(&whole);
    assert_eq!((used.rows, used.columns_together, used.experts), (3000, None, None));
    // 1536 columns take 48 MB; two blocks of 1024 and 512 columns 8 * 2 * 2^20 / 2 + 24 * 2^20.
    let made_up = MadeUp::new(&[3000]);
    let (blocks, cost) = convert_with(&source, &dir.file("blocks.gguf"), &made_up, 35 << 20);
    assert!(cost <= 35 << 20, "{cost}");
    let (in_blocks, used) = of(&blocks);
    assert_eq!(used.columns_together, Some(1024));
    assert!(output.compensated < in_blocks.compensated && in_blocks.compensated < 0.95 * in_blocks.nearest);
    let asked = made_up.asked.lock().unwrap().concat();
    let down = asked.iter().find(|request| request.columns == 1536).unwrap();
    assert_eq!(down.blocks.iter().map(Vec::len).collect::<Vec<_>>(), [1024, 512]);
    // Whole second moments, as a file has them, give the blocks too.
    let (same, _) = convert_with(&source, &dir.file("same.gguf"), &Whole(MadeUp::new(&[3000])), 35 << 20);
    assert_eq!(of(&same), of(&blocks));
    let hash = |name: &str| std::fs::read(dir.file(name)).unwrap();
    assert!(hash("same.gguf") == hash("blocks.gguf") && hash("same.gguf") != hash("whole.gguf"));
}

#[test]
fn experts_have_second_moments_of_their_own_where_they_fit() {
    let dir = Dir::new();
    let path = dir.file("model.gguf");
    TinyModel { experts: 4, layers: 1, ..TinyModel::default() }.write(&path);
    let source = Source::open(&path).unwrap();
    let made_up = || MadeUp::new(&[900, 700, 40, 0]);
    let (own, _) = convert_with(&source, &dir.file("own.gguf"), &made_up(), 1 << 30);
    let (shared, _) = convert_with(&source, &dir.file("shared.gguf"), &made_up(), 6 << 20);
    let experts = |converted: &Converted| {
        let loss = converted.losses.iter().find(|loss| loss.name == "blk.0.ffn_down_exps.weight").unwrap();
        loss.moments.clone().unwrap().experts.unwrap()
    };
    let (own, shared) = (experts(&own), experts(&shared));
    assert_eq!((own.own, shared.own), (true, false));
    // 512 columns: fewer than 128 rows are too few.
    assert_eq!((own.floor, &own.rows, &own.starved), (128, &vec![900, 700, 40, 0], &vec![2, 3]));
    assert_eq!(own.starved, shared.starved);
    let codes = |name: &str| {
        let file = Source::open(&dir.file(name)).unwrap();
        let data = file.data(file.tensor("blk.0.ffn_down_exps.weight").unwrap()).to_vec();
        data.chunks_exact(data.len() / 4).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let (own, shared) = (codes("own.gguf"), codes("shared.gguf"));
    assert!(own[0] != shared[0] && own[1] != shared[1]);
    assert!(own[3] == shared[3], "an expert without rows takes the second moment of its layer");
}

#[test]
fn moments_of_another_model_are_refused() {
    let dir = Dir::new();
    let path = dir.file("model.gguf");
    TinyModel::default().write(&path);
    let model = Source::open(&path).unwrap();
    let file = MomentsFile::open(&write(&dir, "a.gguf", &[0])).unwrap();
    let fingerprint = store::fingerprint(&model);
    let error = Error::from(file.check_model(&model, &fingerprint).unwrap_err());
    let expected = format!("a.gguf: these second moments are of another model: expected {fingerprint}, got 0123");
    assert_eq!(dir.message(&error), expected);
    let error = Error::from(file.check_model(&model, "0123").unwrap_err());
    let expected = "a.gguf: these second moments are of another shape of a tensor: expected no tensor `blk.0.a.weight`, got 1 x 64 input channels";
    assert_eq!(dir.message(&error), expected);
}
