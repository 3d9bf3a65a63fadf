//! Folding leaves the function of every tabled architecture as it was.

use tcq4::math::Permutation;
use tcq4::model::{InputGroup, Producer, groups};
use tcq4::quant::Transform;
use tcq4::quant::fold::{Folding, stream_obstacle};

use crate::tiny_forward::{EMBD, EXPERTS, FF, HEAD, HEADS, KV, Style, Tiny, VOCAB};

/// Largest difference of a logit that rounding (weights and scales in f32, logits of order 10) may explain.
const LOGITS: f64 = 1e-5 * 10.0;

const TOKENS: [usize; 7] = [3, 1, 4, 1, 5, 9, 2];

const Q: usize = HEADS * HEAD;
const V: usize = KV * HEAD;
const ATTN: [(&str, &[usize]); 5] = [
    ("attn_norm.weight", &[EMBD]),
    ("attn_q.weight", &[EMBD, Q]),
    ("attn_k.weight", &[EMBD, V]),
    ("attn_v.weight", &[EMBD, V]),
    ("attn_output.weight", &[Q, EMBD]),
];
const FUSED_ATTN: [(&str, &[usize]); 3] =
    [("attn_norm.weight", &[EMBD]), ("attn_qkv.weight", &[EMBD, Q + 2 * V]), ("attn_output.weight", &[Q, EMBD])];
const FFN_NORM: [(&str, &[usize]); 1] = [("ffn_norm.weight", &[EMBD])];
const GATED: [(&str, &[usize]); 3] =
    [("ffn_gate.weight", &[EMBD, FF]), ("ffn_up.weight", &[EMBD, FF]), ("ffn_down.weight", &[FF, EMBD])];
const PLAIN: [(&str, &[usize]); 2] = [("ffn_up.weight", &[EMBD, FF]), ("ffn_down.weight", &[FF, EMBD])];
const FFN_BIASES: [(&str, &[usize]); 2] = [("ffn_up.bias", &[FF]), ("ffn_down.bias", &[EMBD])];
const ROUTER: [(&str, &[usize]); 1] = [("ffn_gate_inp.weight", &[EMBD, EXPERTS])];
const EXPS: [(&str, &[usize]); 3] = [
    ("ffn_gate_exps.weight", &[EMBD, FF, EXPERTS]),
    ("ffn_up_exps.weight", &[EMBD, FF, EXPERTS]),
    ("ffn_down_exps.weight", &[FF, EMBD, EXPERTS]),
];
const SHEXP: [(&str, &[usize]); 4] = [
    ("ffn_gate_inp_shexp.weight", &[EMBD]),
    ("ffn_gate_shexp.weight", &[EMBD, FF]),
    ("ffn_up_shexp.weight", &[EMBD, FF]),
    ("ffn_down_shexp.weight", &[FF, EMBD]),
];
const QKV_BIASES: [(&str, &[usize]); 3] = [("attn_q.bias", &[Q]), ("attn_k.bias", &[V]), ("attn_v.bias", &[V])];
const HEAD_NORMS: [(&str, &[usize]); 2] = [("attn_q_norm.weight", &[HEAD]), ("attn_k_norm.weight", &[HEAD])];
const POST_NORMS: [(&str, &[usize]); 2] = [("post_attention_norm.weight", &[EMBD]), ("post_ffw_norm.weight", &[EMBD])];

/// One tiny model of each shape that the tables know, with what must be scalable and whether the stream can be ordered.
fn models() -> Vec<(Tiny, &'static [&'static str], bool)> {
    let plain = Style::default();
    let gelu = Style { gelu: true, ..plain };
    let phi2 = Style { layer_norm: true, parallel: true, ..gelu };
    let dense: &[&str] = &["attn_in", "attn_out", "ffn_in", "ffn_down"];
    let moe: &[&str] = &["attn_in", "attn_out", "ffn_in", "ffn_down_exps"];
    let moe_shared: &[&str] = &["attn_in", "attn_out", "ffn_in", "ffn_down_exps", "ffn_down_shexp"];
    let head: &[usize] = &[EMBD, VOCAB];
    vec![
        (Tiny::new("llama", plain).blocks(&ATTN).blocks(&FFN_NORM).blocks(&GATED), dense, true),
        (
            Tiny::new("llama", plain)
                .blocks(&ATTN)
                .blocks(&FFN_NORM)
                .blocks(&ROUTER)
                .blocks(&EXPS)
                .with("output.weight", head),
            moe,
            true,
        ),
        (
            Tiny::new("granitemoe", plain).blocks(&ATTN).blocks(&FFN_NORM).blocks(&ROUTER).blocks(&[
                ("ffn_gate_up_exps.weight", &[EMBD, 2 * FF, EXPERTS]),
                ("ffn_down_exps.weight", &[FF, EMBD, EXPERTS]),
            ]),
            moe,
            true,
        ),
        (Tiny::new("qwen2", plain).blocks(&ATTN).blocks(&QKV_BIASES).blocks(&FFN_NORM).blocks(&GATED), dense, true),
        (Tiny::new("qwen2vl", plain).blocks(&ATTN).blocks(&QKV_BIASES).blocks(&FFN_NORM).blocks(&GATED), dense, false),
        (
            Tiny::new("qwen2moe", plain).blocks(&ATTN).blocks(&FFN_NORM).blocks(&ROUTER).blocks(&EXPS).blocks(&SHEXP),
            moe_shared,
            true,
        ),
        (Tiny::new("qwen3", plain).blocks(&ATTN).blocks(&HEAD_NORMS).blocks(&FFN_NORM).blocks(&GATED), dense, true),
        (
            Tiny::new("qwen3moe", plain)
                .blocks(&ATTN)
                .blocks(&HEAD_NORMS)
                .blocks(&FFN_NORM)
                .blocks(&ROUTER)
                .blocks(&EXPS),
            moe,
            true,
        ),
        (Tiny::new("gemma", gelu).blocks(&ATTN).blocks(&FFN_NORM).blocks(&GATED), dense, true),
        (
            Tiny::new("gemma3", gelu)
                .blocks(&ATTN)
                .blocks(&HEAD_NORMS)
                .blocks(&FFN_NORM)
                .blocks(&GATED)
                .blocks(&POST_NORMS),
            dense,
            true,
        ),
        (
            Tiny::new("phi2", phi2)
                .blocks(&FUSED_ATTN)
                .blocks(&[("attn_norm.bias", &[EMBD]), ("attn_qkv.bias", &[Q + 2 * V]), ("attn_output.bias", &[EMBD])])
                .blocks(&PLAIN)
                .blocks(&FFN_BIASES)
                .with("output_norm.bias", &[EMBD])
                .with("output.weight", head)
                .with("output.bias", &[VOCAB]),
            &["attn_in", "attn_out"],
            true,
        ),
        (
            Tiny::new("phi3", Style { fused_up: true, ..plain })
                .blocks(&FUSED_ATTN)
                .blocks(&FFN_NORM)
                .blocks(&[("ffn_up.weight", &[EMBD, 2 * FF]), ("ffn_down.weight", &[FF, EMBD])]),
            dense,
            true,
        ),
        (
            Tiny::new("command-r", Style { layer_norm: true, parallel: true, ..plain }).blocks(&ATTN).blocks(&GATED),
            &["attn_in", "attn_out", "ffn_down"],
            true,
        ),
        (
            Tiny::new("olmo2", plain).blocks(&ATTN[1..]).blocks(&GATED).blocks(&POST_NORMS),
            &["attn_out", "ffn_down"],
            true,
        ),
        (
            Tiny::new("seed_oss", Style { ffn_behind_post: true, ..plain })
                .blocks(&ATTN)
                .blocks(&POST_NORMS[..1])
                .blocks(&GATED),
            dense,
            true,
        ),
        (
            Tiny::new("gpt-oss", Style { ffn_behind_post: true, clamped: true, ..plain })
                .blocks(&ATTN)
                .blocks(&QKV_BIASES)
                .blocks(&POST_NORMS[..1])
                .blocks(&ROUTER)
                .blocks(&EXPS)
                .blocks(&[
                    ("ffn_gate_inp.bias", &[EXPERTS]),
                    ("ffn_gate_exps.bias", &[FF, EXPERTS]),
                    ("ffn_up_exps.bias", &[FF, EXPERTS]),
                    ("ffn_down_exps.bias", &[EMBD, EXPERTS]),
                ]),
            &["attn_in", "attn_out", "ffn_in"],
            true,
        ),
        (
            Tiny::new("starcoder2", Style { layer_norm: true, ..gelu })
                .blocks(&ATTN)
                .blocks(&QKV_BIASES)
                .blocks(&FFN_NORM)
                .blocks(&[("attn_norm.bias", &[EMBD]), ("ffn_norm.bias", &[EMBD]), ("attn_output.bias", &[EMBD])])
                .blocks(&PLAIN)
                .blocks(&FFN_BIASES),
            &["attn_in", "attn_out", "ffn_in"],
            true,
        ),
    ]
}

/// A random scale, the same for channels with one maker.
fn scale(tiny: &mut Tiny, group: &InputGroup) -> Vec<f32> {
    let makers = group.shared_makers().unwrap_or_else(|| (0..group.columns as usize).collect());
    let each: Vec<f32> = makers.iter().map(|_| (tiny.random() * 1.4).exp()).collect();
    makers.iter().map(|&maker| each[maker]).collect()
}

/// A random order inside spans of `span`.
fn order(tiny: &mut Tiny, len: usize, span: usize) -> Permutation {
    let mut indices: Vec<i64> = (0..len as i64).collect();
    for part in indices.chunks_mut(span) {
        for i in (1..part.len()).rev() {
            let j = ((tiny.random() * 0.5 + 0.5) * (i + 1) as f32) as usize;
            part.swap(i, j.min(i));
        }
    }
    Permutation::new(&indices).unwrap()
}

/// The model with `transform` applied to one tensor.
fn change(tiny: &mut Tiny, name: &str, transform: &Transform) {
    let (dims, old) = tiny.tensors[name].clone();
    let columns = dims[0] as usize;
    let mut new = vec![0.0; old.len()];
    let read = |row: usize, into: &mut [f32]| {
        into.copy_from_slice(&old[row * columns..][..into.len()]);
        Ok::<(), ()>(())
    };
    transform.apply(columns, 0, &mut new, read).unwrap();
    tiny.tensors.insert(name.to_string(), (dims, new));
}

/// The largest difference of two models' logits.
fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Applies every transform, checks that the logits stay, and that they would not if any one of the transforms were left out.
fn check(mut tiny: Tiny, folding: Folding<'_>, what: &str) {
    let transforms = folding.finish();
    assert!(!transforms.is_empty(), "{} {what}", tiny.arch.name);
    let before = tiny.forward(&TOKENS);
    let original = tiny.tensors.clone();
    for (name, transform) in &transforms {
        change(&mut tiny, name, transform);
    }
    let found = difference(&before, &tiny.forward(&TOKENS));
    assert!(found < LOGITS, "{} {what}: logits differ by {found}", tiny.arch.name);
    for name in transforms.keys() {
        let changed = tiny.tensors.insert(name.clone(), original[name].clone()).unwrap();
        let found = difference(&before, &tiny.forward(&TOKENS));
        // A common order of a bias or gain that is left out shows less than a matrix, but it shows.
        assert!(found > 10.0 * LOGITS, "{} {what}: nothing depends on the change of {name} ({found})", tiny.arch.name);
        tiny.tensors.insert(name.clone(), changed);
    }
}

#[test]
fn scales_leave_the_logits_alone() {
    for (mut tiny, scalable, _) in models() {
        let found = groups(tiny.shapes(), &tiny.arch);
        let scales: Vec<_> = found
            .iter()
            .filter(|g| g.producer.why_not_scaled().is_none())
            .map(|g| (g.clone(), scale(&mut tiny, g)))
            .collect();
        let keys: Vec<&str> = scales.iter().filter_map(|(g, _)| g.key.strip_prefix("blk.1.")).collect();
        assert_eq!(keys, scalable, "{}", tiny.arch.name);
        let shapes: Vec<(String, Vec<u64>)> =
            tiny.tensors.iter().map(|(name, (dims, _))| (name.clone(), dims.clone())).collect();
        let mut folding = Folding::new(shapes.iter().map(|(name, dims)| tcq4::model::Shape { name, dims }));
        for (group, scale) in &scales {
            folding.scale(group, scale);
        }
        check(tiny, folding, "scales");
    }
}

#[test]
fn folded_orders_leave_the_logits_alone() {
    for (mut tiny, _, _) in models() {
        let mut orders = Vec::new();
        for group in groups(tiny.shapes(), &tiny.arch) {
            match group.producer {
                Producer::Values { length, kv_heads, .. } => {
                    let order = order(&mut tiny, (length * kv_heads) as usize, length as usize);
                    orders.push((group, order));
                }
                Producer::Ffn { .. } => {
                    let order = order(&mut tiny, FF, FF);
                    orders.push((group, order));
                }
                _ => {}
            }
        }
        assert!(orders.len() >= 4, "{}", tiny.arch.name);
        let shapes: Vec<(String, Vec<u64>)> =
            tiny.tensors.iter().map(|(name, (dims, _))| (name.clone(), dims.clone())).collect();
        let mut folding = Folding::new(shapes.iter().map(|(name, dims)| tcq4::model::Shape { name, dims }));
        for (group, order) in &orders {
            folding.fold_order(group, order);
        }
        check(tiny, folding, "orders");
    }
}

#[test]
fn an_order_of_the_stream_leaves_the_logits_alone() {
    for (mut tiny, _, can) in models() {
        let obstacle = stream_obstacle(tiny.shapes(), &tiny.arch);
        assert_eq!(obstacle.is_none(), can, "{}: {obstacle:?}", tiny.arch.name);
        if !can {
            continue;
        }
        let order = order(&mut tiny, EMBD, EMBD);
        let shapes: Vec<(String, Vec<u64>)> =
            tiny.tensors.iter().map(|(name, (dims, _))| (name.clone(), dims.clone())).collect();
        let mut folding = Folding::new(shapes.iter().map(|(name, dims)| tcq4::model::Shape { name, dims }));
        folding.fold_stream(&order);
        check(tiny, folding, "stream");
    }
}
