//! llama.cpp in process, on tiny models: loading, tokens, logits, observed graphs, ggml's types. Needs the `llama` feature.

use std::collections::BTreeSet;

use tcq4::Result;
use tcq4::calib::collector::{Collector, Wanted};
use tcq4::calib::stats::ChannelStats;
use tcq4::error::{Error, LlamaError};
use tcq4::llama::{
    Capture, Context, ContextOptions, Logits, Model, ModelOptions, Node, Observer, dequantize_rows, quantize_rows,
};

use crate::support::Dir;
use crate::support::tiny_model::TinyModel;

/// Logits computed in one graph or in several: the rounding of f16 activations in between.
const LOGITS_TOLERANCE: f32 = 2e-2;

/// Sums against f64 sums of the same rows.
const SUM_TOLERANCE: f64 = 1e-5;

const CTX: u32 = 64;

fn load(dir: &Dir, tiny: &TinyModel) -> Model {
    let path = dir.file("tiny.gguf");
    tiny.write(&path);
    Model::load(&path, &ModelOptions::default()).unwrap()
}

fn observed(threads: u32, ubatch: u32) -> ContextOptions {
    ContextOptions { threads, ubatch, observe: true, ..ContextOptions::new(CTX) }
}

/// Tokens without meaning: every byte token in turn.
fn tokens(count: usize, step: i32) -> Vec<i32> {
    (0..count as i32).map(|i| 3 + (i * step + 7) % 256).collect()
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_in_one_line() {
    let dir = Dir::new();
    let good = dir.file("tiny.gguf");
    TinyModel::default().write(&good);
    let mut bytes = std::fs::read(&good).unwrap();
    bytes.truncate(bytes.len() - 5000);
    let message = |name: &str, bytes: &[u8]| {
        let error = Model::load(&dir.write(name, bytes), &ModelOptions::default()).unwrap_err();
        let message = dir.message(&error);
        assert!(message.starts_with(&format!("{name}: llama.cpp cannot load this model: ")), "{message}");
        assert!(!message.contains('\n'), "{message}");
        message
    };
    assert!(message("cut.gguf", &bytes).contains("not within the file bounds"));
    assert!(message("text.gguf", b"once upon a time").contains("magic"));
    let missing = Model::load(&dir.file("none.gguf"), &ModelOptions::default()).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
}

#[test]
fn text_becomes_tokens_with_bos() {
    let dir = Dir::new();
    let model = load(&dir, &TinyModel::default());
    assert_eq!((model.adds_bos(), model.bos(), model.vocab_size()), (true, 1, 259));
    let tokens = model.tokenize("ab", true, false).unwrap();
    assert_eq!((tokens[0], &tokens[tokens.len() - 2..]), (1, &[3 + 97, 3 + 98][..]));
}

#[test]
fn logits_do_not_depend_on_the_batches() {
    let dir = Dir::new();
    let model = load(&dir, &TinyModel::default());
    let tokens = tokens(40, 11);
    let mut context = Context::new(&model, &ContextOptions { threads: 1, ..ContextOptions::new(CTX) }).unwrap();
    context.decode(&tokens, Logits::From(30)).unwrap();
    let whole = context.logits().to_vec();
    assert_eq!(whole.len(), 10 * model.vocab_size());
    context.clear();
    context.decode(&tokens[..30], Logits::None).unwrap();
    assert!(context.logits().is_empty());
    context.decode(&tokens[30..], Logits::All).unwrap();
    let worst = whole.iter().zip(context.logits()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < LOGITS_TOLERANCE, "{worst}");
}

#[test]
fn bad_batches_are_refused_before_llama_sees_them() {
    let dir = Dir::new();
    let model = load(&dir, &TinyModel::default());
    let mut context = Context::new(&model, &ContextOptions::new(CTX)).unwrap();
    for bad in [vec![], vec![259], vec![-1], tokens(65, 1)] {
        let error = context.decode(&bad, Logits::None).unwrap_err();
        assert!(matches!(error, Error::Llama(LlamaError::Tokens { .. })), "{error}");
    }
    let error = context.decode_observed(&[5], &mut Collector::new(false)).unwrap_err();
    assert!(matches!(error, Error::Llama(LlamaError::NotObserving)), "{error}");
}

/// Runs some chunks through a collector and returns it.
fn collect(model: &Model, options: &ContextOptions, chunks: &[Vec<i32>]) -> Collector {
    let mut context = Context::new(model, options).unwrap();
    let mut collector = Collector::new(true);
    for (index, chunk) in chunks.iter().enumerate() {
        context.clear();
        collector.begin_chunk(Wanted { sums: true, rows: vec![3, 50], rows_before: 2 * index });
        context.decode_observed(chunk, &mut collector).unwrap();
    }
    collector
}

#[test]
fn every_weight_is_captured_and_shared_inputs_are_known() {
    let dir = Dir::new();
    let model = load(&dir, &TinyModel::default());
    let collector = collect(&model, &observed(1, CTX), &[tokens(64, 11), tokens(64, 5)]);
    let (entries, groups) = collector.finish();
    let sets: Vec<BTreeSet<&str>> = groups.iter().map(|group| group.iter().map(String::as_str).collect()).collect();
    let expected = |parts: &[&str], layer: usize| {
        let names = parts.iter().map(|part| format!("blk.{layer}.{part}.weight"));
        let names: BTreeSet<String> = names.collect();
        sets.iter().any(|set| set.iter().copied().eq(names.iter().map(String::as_str)))
    };
    for layer in 0..2 {
        assert!(expected(&["attn_q", "attn_k", "attn_v"], layer), "{groups:?}");
        assert!(expected(&["ffn_gate", "ffn_up"], layer) && expected(&["ffn_down"], layer), "{groups:?}");
    }
    assert_eq!((entries.len(), groups.len()), (15, 9));
    for (name, stats) in &entries {
        assert_eq!(stats.counts, [128], "{name}");
        assert_eq!(stats.rows.as_ref().unwrap().len(), 4, "{name}");
    }
    assert_eq!(entries["blk.0.attn_q.weight"], entries["blk.0.attn_v.weight"]);
}

#[test]
fn leaving_the_graph_early_changes_nothing() {
    let dir = Dir::new();
    let model = load(&dir, &TinyModel::default());
    let chunks = [tokens(64, 11), tokens(64, 5), tokens(20, 3)];
    // Each in a context of its own: the first graph of a context always runs to its end.
    let mut apart = Collector::new(true);
    for (index, chunk) in chunks.iter().enumerate() {
        let mut context = Context::new(&model, &observed(1, CTX)).unwrap();
        apart.begin_chunk(Wanted { sums: true, rows: vec![3, 50], rows_before: 2 * index });
        context.decode_observed(chunk, &mut apart).unwrap();
    }
    assert_eq!(collect(&model, &observed(1, CTX), &chunks).entries(), apart.entries());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let dir = Dir::new();
    let model = load(&dir, &TinyModel { experts: 4, ..TinyModel::default() });
    let chunks = [tokens(64, 11), tokens(64, 5)];
    let one = collect(&model, &observed(1, CTX), &chunks);
    assert_eq!(one.entries(), collect(&model, &observed(3, CTX), &chunks).entries());
}

#[test]
fn sample_rows_are_counted_across_graphs() {
    let dir = Dir::new();
    let model = load(&dir, &TinyModel::default());
    let chunks = [tokens(64, 11)];
    let (whole, pieces) = (collect(&model, &observed(1, CTX), &chunks), collect(&model, &observed(1, 16), &chunks));
    for (a, b) in whole.entries().iter().zip(pieces.entries()) {
        assert_eq!((&a.weights, &a.sums.counts, &a.turns), (&b.weights, &b.sums.counts, &b.turns));
        let worst = a.rows.data.iter().zip(&b.rows.data).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < LOGITS_TOLERANCE, "{:?}: {worst}", a.weights);
    }
}

/// An observer that keeps the rows of some weights as they come.
#[derive(Default)]
struct Keeper {
    rows: std::collections::BTreeMap<String, Vec<Vec<f32>>>,
}

impl Observer for Keeper {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        node.weight.starts_with("blk.0.ffn_")
    }

    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        let kept = self.rows.entry(node.weight.to_owned()).or_default();
        let mut offsets = vec![Vec::new(); node.matrices];
        input.rows_by_matrix(node, &mut offsets);
        kept.extend(offsets.iter().flatten().map(|&offset| input.row(offset).to_vec()));
        Ok(())
    }
}

#[test]
fn experts_get_the_rows_that_the_router_sends_them() {
    let dir = Dir::new();
    let tiny = TinyModel { experts: 4, ..TinyModel::default() };
    let model = load(&dir, &tiny);
    let chunk = tokens(64, 11);
    let mut keeper = Keeper::default();
    Context::new(&model, &observed(1, CTX)).unwrap().decode_observed(&chunk, &mut keeper).unwrap();
    let expected = route(&tiny, &keeper.rows["blk.0.ffn_gate_inp.weight"]);
    let (entries, groups) = collect(&model, &observed(1, CTX), &[chunk]).finish();
    for name in ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"] {
        let stats = &entries[name];
        assert_eq!(stats.counts, expected.counts, "{name}");
        let close = |a: &f64, b: &f64| (a - b).abs() <= SUM_TOLERANCE * b.abs();
        assert!(stats.sum_sq.iter().zip(&expected.sum_sq).all(|(a, b)| close(a, b)), "{name}");
        assert_eq!(stats.abs_max, expected.abs_max, "{name}");
        assert_eq!((&stats.min, &stats.max), (&expected.min, &expected.max), "{name}");
    }
    let down = &entries["blk.0.ffn_down_exps.weight"];
    assert_eq!((&down.counts, down.columns, down.matrices), (&expected.counts, 512, 4));
    assert_eq!(entries["blk.0.ffn_gate_inp.weight"].counts, [64]);
    let group = groups.iter().find(|group| group.contains(&"blk.0.ffn_gate_inp.weight".to_owned())).unwrap();
    assert_eq!(group.len(), 3, "router and experts share their input: {group:?}");
}

/// What the experts of the first layer see, computed from the router's input and weights: the two best of softmax, which are the two largest logits.
fn route(tiny: &TinyModel, rows: &[Vec<f32>]) -> ChannelStats {
    let spec = tiny.tensors().into_iter().find(|spec| spec.name == "blk.0.ffn_gate_inp.weight").unwrap();
    let weights: Vec<f32> =
        tiny.data(&spec).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let columns = spec.dims[0] as usize;
    let mut stats = ChannelStats::new(4, columns);
    for row in rows {
        let dot = |w: &[f32]| w.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let mut scores: Vec<(usize, f64)> = weights.chunks_exact(columns).map(dot).enumerate().collect();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        for &(expert, _) in &scores[..2] {
            stats.counts[expert] += 1;
            for (j, x) in row.iter().enumerate() {
                let at = expert * columns + j;
                stats.sum_sq[at] += f64::from(*x).powi(2);
                stats.abs_max[at] = stats.abs_max[at].max(x.abs());
                (stats.min[at], stats.max[at]) = (stats.min[at].min(*x), stats.max[at].max(*x));
            }
        }
    }
    stats
}

/// An observer that fails at its second node.
struct Failing {
    seen: usize,
    panic: bool,
}

impl Observer for Failing {
    fn wants(&mut self, _node: &Node<'_>) -> bool {
        true
    }

    fn observe(&mut self, _node: &Node<'_>, _input: &Capture<'_>) -> Result<()> {
        self.seen += 1;
        match (self.seen, self.panic) {
            (1, _) => Ok(()),
            (_, false) => Err(Error::Interrupted),
            (_, true) => panic!("an observer's bug"),
        }
    }
}

#[test]
fn errors_and_panics_of_an_observer_come_out_of_decode() {
    let dir = Dir::new();
    let model = load(&dir, &TinyModel::default());
    let mut context = Context::new(&model, &observed(1, CTX)).unwrap();
    let mut failing = Failing { seen: 0, panic: false };
    let error = context.decode_observed(&tokens(64, 11), &mut failing).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert_eq!(failing.seen, 2);
    context.clear();
    let error = context.decode_observed(&tokens(64, 11), &mut Failing { seen: 0, panic: true }).unwrap_err();
    assert!(error.to_string().ends_with("panicked: an observer's bug"), "{error}");
    // The context is as good as before.
    context.clear();
    let mut collector = Collector::new(false);
    collector.begin_chunk(Wanted { sums: true, ..Wanted::default() });
    context.decode_observed(&tokens(64, 11), &mut collector).unwrap();
    assert_eq!(collector.entries().len(), 8);
}

/// ggml's ids of Q8_0, Q6_K, Q4_K, IQ2_XS and Q8_K.
const IDS: [u32; 5] = [8, 14, 12, 17, 15];

/// The root mean square of the error over that of the values: half a step of 1/127, 1/32 and 1/15 of a block's maximum, rounded up.
const TYPE_ERRORS: [(u32, usize, f64); 3] = [(8, 34 * 8, 0.01), (14, 210, 0.03), (12, 144, 0.1)];

fn wave(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin() * 2.0 + (i as f32 * 0.011).cos()).collect()
}

#[test]
fn ggml_types_come_back_within_their_error_from_many_threads() {
    let rows = wave(16 * 256);
    for (ty, bytes, limit) in TYPE_ERRORS {
        let one = |threads: usize| {
            let mut encoded = vec![0; 16 * bytes];
            std::thread::scope(|scope| {
                let share = 16 / threads;
                for (src, dst) in rows.chunks(share * 256).zip(encoded.chunks_mut(share * bytes)) {
                    scope.spawn(move || quantize_rows(ty, src, 256, None, dst).unwrap());
                }
            });
            encoded
        };
        let encoded = one(1);
        assert_eq!(encoded, one(4));
        let mut decoded = vec![0.0; rows.len()];
        // An odd address must not matter.
        let mut shifted = vec![0; 1];
        shifted.extend(&encoded);
        dequantize_rows(ty, &shifted[1..], 256, &mut decoded).unwrap();
        let (mut error, mut power) = (0.0, 0.0);
        for (a, b) in rows.iter().zip(&decoded) {
            error += f64::from(a - b).powi(2);
            power += f64::from(*a).powi(2);
        }
        assert!((error / power).sqrt() < limit, "type {ty}: {}", (error / power).sqrt());
    }
}

#[test]
fn what_would_abort_ggml_is_refused() {
    let [q8_0, _, q4_k, iq2_xs, q8_k] = IDS;
    let rows = wave(256);
    let refuse = |ty: u32, src: &[f32], columns: usize, importance: Option<&[f32]>, bytes: usize| {
        quantize_rows(ty, src, columns, importance, &mut vec![0; bytes]).unwrap_err().to_string()
    };
    assert_eq!(refuse(80, &rows, 256, None, 148), "tensor type type 80 is unknown to this llama.cpp");
    assert_eq!(refuse(4, &rows, 256, None, 148), "tensor type type 4 is unknown to this llama.cpp");
    assert_eq!(refuse(q8_k, &rows, 256, None, 292), "tensor type q8_K cannot be written by llama.cpp");
    assert_eq!(refuse(iq2_xs, &rows, 256, None, 74), "tensor type iq2_xs needs an importance matrix");
    assert_eq!(refuse(q4_k, &rows, 256, None, 143), "tensor type q4_K: expected a length of 144, got 143");
    assert_eq!(refuse(q8_0, &rows, 256, Some(&[1.0; 255]), 272), "tensor type q8_0: expected a length of 256, got 255");
    assert_eq!(refuse(q8_0, &rows, 256, Some(&[-1.0; 256]), 272), "tensor type q8_0: importance 0 is -1");
    let shape = "160 values in rows of 160 do not fit tensor type q4_K, whose blocks have 256";
    assert_eq!(refuse(q4_k, &rows[..160], 160, None, 90), shape);
    let mut bad = rows.clone();
    bad[77] = f32::NAN;
    assert_eq!(refuse(q8_0, &bad, 256, None, 272), "tensor type q8_0: weight 77 is NaN");
    let error = dequantize_rows(q8_0, &[0; 271], 256, &mut [0.0; 256]).unwrap_err();
    assert_eq!(error.to_string(), "tensor type q8_0: expected a length of 272, got 271");
    assert!(dequantize_rows(80, &[0; 148], 256, &mut [0.0; 256]).is_err());
    quantize_rows(iq2_xs, &rows, 256, Some(&[1.0; 256]), &mut [0; 74]).unwrap();
}

#[test]
fn plain_floats_are_types_too() {
    let rows = wave(64);
    for (ty, width) in [(0, 4), (1, 2), (30, 2)] {
        let mut bytes = vec![0; 64 * width];
        quantize_rows(ty, &rows, 64, None, &mut bytes).unwrap();
        let mut back = vec![0.0; 64];
        dequantize_rows(ty, &bytes, 64, &mut back).unwrap();
        assert!(rows.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.02), "type {ty}");
    }
}
