//! Changing what enters a multiplication, on tiny models: exactly that, nothing else. The oracle is a second model: an input times powers of two is the
//! weights' columns times powers of two, to the last bit.

use std::collections::BTreeMap;

use half::f16;
use tcq4::Result;
use tcq4::error::{Error, LlamaError};
use tcq4::gguf::{GgmlType, Sharding};
use tcq4::llama::{
    Capture, Context, ContextOptions, Input, Logits, Model, ModelOptions, Node, Observer, Rewriter, Watch,
};

use crate::support::Dir;
use crate::support::tiny_model::TinyModel;

const CTX: u32 = 64;

fn load(dir: &Dir, name: &str, tiny: &TinyModel) -> Model {
    let path = dir.file(name);
    tiny.write(&path);
    Model::load(&path, &ModelOptions::default()).unwrap()
}

fn dense() -> TinyModel {
    TinyModel::default()
}

fn moe() -> TinyModel {
    TinyModel { experts: 4, ..TinyModel::default() }
}

fn tokens(step: i32) -> Vec<i32> {
    (0..CTX as i32).map(|i| 3 + (i * step + 7) % 256).collect()
}

fn options(ubatch: u32) -> ContextOptions {
    ContextOptions { threads: 1, ubatch, observe: true, ..ContextOptions::new(CTX) }
}

/// A factor for each channel: 1/2, 1 or 2.
fn factor(channel: usize) -> f32 {
    [0.5, 1.0, 2.0][channel * 7 % 3]
}

/// Multiplies the inputs of some weights, chosen by a part of their name, and counts.
struct Scale {
    part: &'static str,
    factor: fn(usize) -> f32,
    graphs: usize,
    calls: usize,
}

impl Scale {
    fn new(part: &'static str, factor: fn(usize) -> f32) -> Self {
        Self { part, factor, graphs: 0, calls: 0 }
    }
}

impl Rewriter for Scale {
    fn begin_graph(&mut self, _tokens: usize) {
        self.graphs += 1;
    }

    fn rewrites(&mut self, node: &Node<'_>) -> bool {
        node.weight.contains(self.part)
    }

    fn rewrite(&mut self, node: &Node<'_>, input: &mut Input<'_>) -> Result<()> {
        assert_eq!(node.columns, input.columns());
        self.calls += 1;
        for row in input.rows_mut() {
            row.iter_mut().enumerate().for_each(|(channel, value)| *value *= (self.factor)(channel));
        }
        Ok(())
    }
}

/// The logits of some chunks, one after the other in one context.
fn logits(model: &Model, ubatch: u32, rewriter: Option<&mut dyn Rewriter>) -> Vec<Vec<f32>> {
    let mut context = Context::new(model, &options(ubatch)).unwrap();
    let mut watch = Watch { observer: None, rewriter };
    let mut all = Vec::new();
    for step in [11, 5, 3] {
        context.clear();
        match &mut watch.rewriter {
            None => context.decode(&tokens(step), Logits::From(20)).unwrap(),
            Some(rewriter) => {
                let watch = Watch { observer: None, rewriter: Some(&mut **rewriter) };
                context.decode_watched(&tokens(step), Logits::From(20), watch).unwrap();
            }
        }
        all.push(context.logits().to_vec());
    }
    all
}

#[test]
fn changing_nothing_changes_no_bit() {
    let dir = Dir::new();
    for (name, tiny, calls) in [("dense.gguf", dense(), 15), ("moe.gguf", moe(), 17)] {
        let model = load(&dir, name, &tiny);
        for ubatch in [64, 16] {
            let mut identity = Scale::new("", |_| 1.0);
            let plain = logits(&model, ubatch, None);
            assert_eq!(plain[0].len(), 44 * model.vocab_size());
            assert!(logits(&model, ubatch, Some(&mut identity)) == plain, "{name}, {ubatch}");
            assert_eq!(identity.graphs, 3 * 64 / ubatch as usize, "{name}, {ubatch}");
            if ubatch == 64 {
                assert_eq!(identity.calls, 3 * calls, "{name}");
            }
        }
    }
}

/// Writes a model whose weights of this name are multiplied column by column.
fn scaled(dir: &Dir, tiny: &TinyModel, part: &str) -> Model {
    let path = dir.file(&format!("scaled-{part}.gguf"));
    let columns: BTreeMap<String, usize> =
        tiny.tensors().into_iter().map(|spec| (spec.name, spec.dims[0] as usize)).collect();
    tiny.write_edited(&path, &Sharding::Single, |name, data| {
        if name.contains(part) && !name.contains("norm") {
            assert_eq!(tiny.ty, GgmlType::F16);
            for (at, pair) in data.chunks_exact_mut(2).enumerate() {
                let value = f16::from_le_bytes([pair[0], pair[1]]).to_f32() * factor(at % columns[name]);
                pair.copy_from_slice(&f16::from_f32(value).to_le_bytes());
            }
        }
    });
    Model::load(&path, &ModelOptions::default()).unwrap()
}

/// Logits whose weights or whose activations were scaled: sums of the same products, but f16 numbers near 0 lose bits when halved.
const SCALED_TOLERANCE: f32 = 2e-3;

#[test]
fn scaled_inputs_are_scaled_weights_and_nobody_else_sees_them() {
    let dir = Dir::new();
    for (name, tiny, parts) in [
        ("dense.gguf", dense(), &["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up", "ffn_down"][..]),
        ("moe.gguf", moe(), &["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "attn_v"]),
    ] {
        let model = load(&dir, name, &tiny);
        let plain = logits(&model, 64, None);
        for &part in parts {
            let expected = logits(&scaled(&dir, &tiny, part), 64, None);
            let mut scale = Scale::new(part, factor);
            let got = logits(&model, 64, Some(&mut scale));
            let worst = |a: &[Vec<f32>], b: &[Vec<f32>]| {
                a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            let (off, effect) = (worst(&got, &expected), worst(&got, &plain));
            assert!(off <= SCALED_TOLERANCE && effect > 20.0 * SCALED_TOLERANCE, "{part}: {off} of {effect}");
            assert_eq!(scale.calls, 6, "{part}");
        }
    }
}

/// Keeps the inputs of some weights.
struct Keep {
    part: &'static str,
    rows: BTreeMap<String, Vec<f32>>,
}

impl Observer for Keep {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        node.weight.starts_with("blk.0.") && node.weight.contains(self.part)
    }

    fn observe(&mut self, node: &Node<'_>, input: &Capture<'_>) -> Result<()> {
        self.rows.insert(node.weight.to_owned(), input.data.to_vec());
        Ok(())
    }
}

fn inputs(model: &Model, part: &'static str, rewriter: Option<&mut dyn Rewriter>) -> BTreeMap<String, Vec<f32>> {
    let mut keep = Keep { part, rows: BTreeMap::new() };
    let mut context = Context::new(model, &options(64)).unwrap();
    let rewriter = rewriter.map(|rewriter| rewriter as _);
    let watch = Watch { observer: Some(&mut keep), rewriter };
    context.decode_watched(&tokens(11), Logits::None, watch).unwrap();
    keep.rows
}

#[test]
fn what_was_changed_is_put_back_for_the_next_reader() {
    let dir = Dir::new();
    let dense = load(&dir, "dense.gguf", &dense());
    let (plain, seen) =
        (inputs(&dense, "attn_", None), inputs(&dense, "attn_", Some(&mut Scale::new("attn_q", factor))));
    let changed = |name: &str| plain[name] != seen[name];
    assert!(changed("blk.0.attn_q.weight"), "an observer of the same multiplication sees what it was given");
    assert!(!changed("blk.0.attn_k.weight") && !changed("blk.0.attn_v.weight"));
    let moe = load(&dir, "moe.gguf", &moe());
    let zero = |part| Scale::new(part, |_| 0.0);
    let (plain, seen) = (inputs(&moe, "ffn_", None), inputs(&moe, "ffn_", Some(&mut zero("ffn_gate_exps"))));
    assert!(seen["blk.0.ffn_gate_exps.weight"].iter().all(|&value| value == 0.0));
    for name in ["blk.0.ffn_gate_inp.weight", "blk.0.ffn_up_exps.weight"] {
        assert!(plain[name] == seen[name], "{name}");
    }
}

/// Fails at its third call.
struct Failing(usize, bool);

impl Rewriter for Failing {
    fn rewrites(&mut self, _node: &Node<'_>) -> bool {
        true
    }

    fn rewrite(&mut self, _node: &Node<'_>, _input: &mut Input<'_>) -> Result<()> {
        self.0 += 1;
        match (self.0, self.1) {
            (1 | 2, _) => Ok(()),
            (_, false) => Err(Error::Interrupted),
            (_, true) => panic!("a rewriter's bug"),
        }
    }
}

/// Wants another node in its second graph.
struct Fickle(usize);

impl Rewriter for Fickle {
    fn begin_graph(&mut self, _tokens: usize) {
        self.0 += 1;
    }

    fn rewrites(&mut self, node: &Node<'_>) -> bool {
        node.weight == ["", "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"][self.0]
    }

    fn rewrite(&mut self, _node: &Node<'_>, _input: &mut Input<'_>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn errors_come_out_and_the_context_is_as_good_as_before() {
    let dir = Dir::new();
    let model = load(&dir, "tiny.gguf", &dense());
    let mut context = Context::new(&model, &options(64)).unwrap();
    let mut run = |rewriter: &mut dyn Rewriter| {
        context.clear();
        let watch = Watch { observer: None, rewriter: Some(rewriter) };
        context.decode_watched(&tokens(11), Logits::From(20), watch).map(|()| context.logits().to_vec())
    };
    assert!(matches!(run(&mut Failing(0, false)).unwrap_err(), Error::Interrupted));
    assert!(run(&mut Failing(0, true)).unwrap_err().to_string().ends_with("panicked: a rewriter's bug"));
    let mut fickle = Fickle(0);
    run(&mut fickle).unwrap();
    let error = run(&mut fickle).unwrap_err();
    assert!(matches!(error, Error::Llama(LlamaError::GraphChanged { .. })), "{error}");
    assert!(run(&mut Fickle(0)).unwrap() == logits(&model, 64, None)[0]);
}
