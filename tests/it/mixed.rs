//! Mixed precision below the command line: marks of activation paths in files, kept sensitivities, and output errors on sample rows.

use std::collections::BTreeMap;
use std::path::Path;

use tcq4::convert::sensitivities::{Part, Sensitivities};
use tcq4::convert::{
    Codes, Conversion, Job, Marks, PlanSettings, Provenance, Target, convert, output_metadata, verify,
};
use tcq4::gguf::{GgmlType, Metadata, Sharding, Source};
use tcq4::math::Permutation;
use tcq4::quant::evidence::Weights;
use tcq4::quant::{Activations, Candidate, Candidates, GroupLoss, InputRounding, Sampler, Transform};
use tcq4::tcq::{Codec, Encoder};
use tcq4::util::progress::NoProgress;

use crate::support::Dir;
use crate::support::evidence::{statistics, uneven};
use crate::support::tiny_model::TinyModel;

fn codec() -> Codec {
    Codec::new(Encoder::Default)
}

fn tiny(dir: &Dir) -> Source {
    TinyModel { layers: 1, ..TinyModel::default() }.write(&dir.file("in.gguf"));
    Source::open(&dir.file("in.gguf")).unwrap()
}

/// Converts with further keys.
fn converted(source: &Source, output: &Path, keys: impl FnOnce(&mut Metadata)) -> Source {
    let keep = Some(GgmlType::F16);
    let settings = PlanSettings { embedding_type: keep, output_type: keep, ..PlanSettings::default() };
    let plan = Conversion::new(source, &settings).unwrap();
    let provenance = Provenance { encoder: Encoder::Default, recipe: "{}".into(), calibration: Vec::new() };
    let mut metadata = output_metadata(source, &plan, &BTreeMap::new(), &provenance);
    keys(&mut metadata);
    let (codes, transforms) = (Codes::Nearest, &BTreeMap::new());
    let job = Job { source, plan: &plan, transforms, codec: codec(), device: None, codes, statistics: None, metadata };
    let target = Target { path: output.to_path_buf(), force: true, sharding: Sharding::Single };
    convert(&job, &target, &NoProgress).unwrap();
    Source::open(output).unwrap()
}

#[test]
fn marks_come_back() {
    let dir = Dir::new();
    let source = tiny(&dir);
    let names = ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"];
    let tensors: BTreeMap<String, Activations> = names.map(|name| (name.to_string(), Activations::Int8)).into();
    let marks = Marks { default: Some(Activations::Int4Group32), tensors };
    let file = converted(&source, &dir.file("out.gguf"), |keys| marks.write(keys));
    assert_eq!(Marks::read(&file).unwrap(), marks);
    assert_eq!(marks.of(names[0]), Some(Activations::Int8));
    assert_eq!(marks.of("blk.0.ffn_down.weight"), Some(Activations::Int4Group32));
    assert_eq!(verify(&file, codec(), &NoProgress).unwrap().marks, 2);
    let plain = converted(&source, &dir.file("plain.gguf"), |_| ());
    assert_eq!(Marks::read(&plain).unwrap(), Marks::default());
}

#[test]
fn marks_that_no_runtime_could_follow_are_refused() {
    let dir = Dir::new();
    let source = tiny(&dir);
    let problem = |key: &str, value: Option<&str>| {
        let file = converted(&source, &dir.file("out.gguf"), |keys| match value {
            Some(value) => keys.set(key, value),
            None => keys.set(key, 8u32),
        });
        verify(&file, codec(), &NoProgress).unwrap_err().to_string()
    };
    let own = "tcq4.blk.0.ffn_down.weight.activations";
    assert!(problem(own, Some("int3")).contains("`int3` is not an activation path"));
    assert!(problem(own, None).contains("it is not a string"));
    assert!(problem("tcq4.activations", Some("")).contains("`` is not an activation path"));
    assert!(problem("tcq4.blk.7.ffn_down.weight.activations", Some("int8")).contains("the file has no such tensor"));
    assert!(problem("tcq4.blk.0.ffn_norm.weight.activations", Some("int8")).contains("only TCQ4 tensors"));
    let split = problem("tcq4.blk.0.ffn_up.weight.activations", Some("int8"));
    assert!(split.contains("int8 for an input that `blk.0.ffn_gate.weight` reads with no path"), "{split}");
}

fn group(tensor: &str) -> GroupLoss {
    GroupLoss {
        group: "blk.0.ffn_down".into(),
        tensors: vec![tensor.into()],
        multiply_adds: 9,
        error: 0.25,
        error_int8: 0.001,
        estimate: 0.1,
        kld: Some(0.3),
    }
}

fn candidates(source: &Source, tensor: &str) -> Candidates {
    let info = source.tensor(tensor).unwrap();
    let candidate = |ty: GgmlType| Candidate {
        ty: ty.to_string(),
        bytes: ty.row_bytes(info.columns()).unwrap() * info.rows(),
        error: 0.1,
        loss: 0.2,
    };
    let types = [GgmlType::TCQ4_K32, GgmlType::Q6_K].map(candidate).to_vec();
    Candidates { tensor: tensor.into(), weights: info.elements(), sensitivity: 2.0, candidates: types }
}

#[test]
fn kept_sensitivities_come_back_and_belong_to_one_model() {
    let dir = Dir::new();
    let (source, path) = (tiny(&dir), dir.file("kept.json"));
    let name = "blk.0.ffn_down.weight";
    let mut kept = Sensitivities::load(&path, &source).unwrap();
    assert_eq!(kept, Sensitivities::new(&source), "nothing there yet");
    kept.inputs = Some(Part { settings: "a".into(), losses: vec![group(name)] });
    kept.tensors = Some(Part { settings: "b".into(), losses: vec![candidates(&source, name)] });
    kept.save(&path, &[]).unwrap();
    assert_eq!(Sensitivities::load(&path, &source).unwrap(), kept);
    TinyModel { layers: 1, seed: 2, ..TinyModel::default() }.write(&dir.file("other.gguf"));
    let other = Source::open(&dir.file("other.gguf")).unwrap();
    let refused = Sensitivities::load(&path, &other).unwrap_err().to_string();
    assert!(refused.contains("these sensitivities are of another model"), "{refused}");
}

#[test]
fn impossible_sensitivities_are_refused() {
    let dir = Dir::new();
    let (source, path) = (tiny(&dir), dir.file("kept.json"));
    let name = "blk.0.ffn_down.weight";
    let inputs = |losses: Vec<GroupLoss>| {
        let mut kept = Sensitivities::new(&source);
        kept.inputs = Some(Part { settings: String::new(), losses });
        kept.save(&path, &[]).unwrap();
        Sensitivities::load(&path, &source).unwrap_err().to_string()
    };
    assert!(inputs(vec![GroupLoss { estimate: -1.0, ..group(name) }]).contains("has the loss -1"));
    assert!(inputs(vec![group(name), group(name)]).contains("in two groups"));
    assert!(inputs(vec![group("blk.9.x")]).contains("`blk.9.x` is not in the model"));
    assert!(inputs(vec![GroupLoss { multiply_adds: u64::MAX, ..group(name) }]).contains("multiply-adds"));
    let tensors = |change: &dyn Fn(&mut Candidates)| {
        let mut kept = Sensitivities::new(&source);
        let mut of = candidates(&source, name);
        change(&mut of);
        kept.tensors = Some(Part { settings: String::new(), losses: vec![of] });
        kept.save(&path, &[]).unwrap();
        Sensitivities::load(&path, &source).unwrap_err().to_string()
    };
    assert!(tensors(&|of| of.candidates.clear()).contains("has no candidates"));
    assert!(tensors(&|of| of.candidates[1].bytes -= 1).contains("does not take"));
    assert!(tensors(&|of| of.candidates[1].ty = "q7".into()).contains("unknown tensor type"));
    assert!(tensors(&|of| of.weights = 3).contains("another size"));
    for text in ["", "[]", "{\"version\":1}", "{\"version\":1,\"model\":\"x\",\"more\":1}"] {
        std::fs::write(&path, text).unwrap();
        let refused = Sensitivities::load(&path, &source).unwrap_err().to_string();
        assert!(refused.contains("not a file of sensitivities"), "{text}: {refused}");
    }
    std::fs::write(&path, "{\"version\":2,\"model\":\"x\"}").unwrap();
    assert!(Sensitivities::load(&path, &source).unwrap_err().to_string().contains("its version is 2"));
}

/// Squared differences of x wᵀ and x' w'ᵀ over all pairs of rows, in f64.
fn naive(x: &[f32], w: &[f32], x2: &[f32], w2: &[f32], columns: usize) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let mut sum = 0.0;
    for (x, x2) in x.chunks(columns).zip(x2.chunks(columns)) {
        for (w, w2) in w.chunks(columns).zip(w2.chunks(columns)) {
            sum += (dot(x, w) - dot(x2, w2)).powi(2);
        }
    }
    sum
}

#[test]
fn output_errors_on_sample_rows_are_their_definition() {
    let dir = Dir::new();
    let source = tiny(&dir);
    let known = statistics(&source, 24, uneven);
    let read = |tensor: &_, first, out: &mut [f32]| source.read_rows(tensor, first, out);
    let tensor = source.tensor("blk.0.ffn_down.weight").unwrap();
    let columns = tensor.columns() as usize;
    let order = Permutation::new(&(0..columns as i64).map(|i| i * 5 % columns as i64).collect::<Vec<_>>()).unwrap();
    let transform = Transform {
        column_scale: Some((0..columns).map(|i| [0.5, 1.0, 3.0][i % 3]).collect()),
        columns: Some(order.clone()),
        runtime_perm: true,
        ..Transform::default()
    };
    let transforms = [(tensor.name.clone(), transform.clone())].into();
    let weights = Weights { source: &source, read: &read };
    let sampler = Sampler { weights, statistics: &known, transforms: &transforms, codec: codec() };
    let x = &known.entries[&tensor.name].rows.as_ref().unwrap().data;
    let w: Vec<f32> = {
        let mut all = vec![0.0; tensor.elements() as usize];
        source.read_rows(tensor, 0, &mut all).unwrap();
        // 64 of 256 rows: every fourth.
        all.chunks(columns).step_by(4).flatten().copied().collect()
    };
    let total = naive(x, &w, &vec![0.0; x.len()], &w, columns);

    let paths = [Activations::None, Activations::Int8, Activations::Int4];
    let found = sampler.inputs(tensor, &paths).unwrap().unwrap();
    assert!((found.energy - total / 24.0 * 4.0).abs() < 1e-3 * found.energy);
    for (path, error) in paths.into_iter().zip(&found.errors) {
        let way = InputRounding::before(path, Some(&transform));
        let mut rounded = vec![0.0; x.len()];
        rounded.chunks_mut(columns).zip(x.chunks(columns)).for_each(|(to, row)| way.round_row(codec(), row, to));
        let expected = naive(x, &w, &rounded, &w, columns) / total;
        assert!((error - expected).abs() <= 1e-3 * expected + 1e-9, "{path}: {error} and {expected}");
    }
    assert!(found.errors[0] < 1e-9 && found.errors[1] < 0.01 * found.errors[2], "{found:?}");

    // Scaled, gathered, encoded, decoded, and back by hand.
    let factor = |column: usize| transform.column_scale.as_ref().unwrap()[column];
    let mut stored = w.clone();
    for stripe in stored.chunks_mut(8 * columns) {
        let old = stripe.to_vec();
        let source_of = |i: usize| order.indices()[i] as usize;
        for (to, from) in stripe.chunks_mut(columns).zip(old.chunks(columns)) {
            (0..columns).for_each(|i| to[i] = from[source_of(i)] * factor(source_of(i)));
        }
        let mut tiles = vec![bytemuck::Zeroable::zeroed(); columns / 256];
        codec().encode_rows(stripe, columns, &mut tiles).unwrap();
        codec().decode_rows(&tiles, columns, stripe);
        let new = stripe.to_vec();
        for (to, from) in stripe.chunks_mut(columns).zip(new.chunks(columns)) {
            (0..columns).for_each(|i| to[source_of(i)] = from[i] / factor(source_of(i)));
        }
    }
    let found = sampler.types(tensor, &[GgmlType::TCQ4_K32, GgmlType::F16]).unwrap().unwrap();
    let expected = naive(x, &w, x, &stored, columns) / total;
    assert!((found.errors[0] - expected).abs() < 1e-3 * expected, "{found:?} and {expected}");
    assert_eq!(found.errors[1], 0.0);
}

#[test]
fn influence_is_the_share_of_the_stream() {
    let dir = Dir::new();
    let source = tiny(&dir);
    let known = statistics(&source, 24, uneven);
    let read = |tensor: &_, first, out: &mut [f32]| source.read_rows(tensor, first, out);
    let transforms = BTreeMap::new();
    let weights = Weights { source: &source, read: &read };
    let sampler = Sampler { weights, statistics: &known, transforms: &transforms, codec: codec() };
    let of = |name: &str| source.tensor(&format!("blk.0.{name}.weight")).unwrap();
    let names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let measure = |name| sampler.inputs(of(name), &[Activations::Int4]).unwrap().unwrap();
    let mut found = names.map(measure);
    sampler.weigh(&mut found).unwrap();
    let influence = found.each_ref().map(|one| one.influence);
    assert!(influence[..3].iter().all(|i| (i - influence[3] / 3.0).abs() < 1e-12), "{influence:?}");
    assert!(influence[4..6].iter().all(|i| (i - influence[6] / 2.0).abs() < 1e-12), "{influence:?}");
    // Attention first: its share is of the embedding and itself, that of the network of all three.
    let (attention, network) = (found[3].energy, found[6].energy);
    let before = attention / influence[3] - attention;
    assert!(before > 0.0 && (network / (before + attention + network) - influence[6]).abs() < 1e-9, "{influence:?}");
}
