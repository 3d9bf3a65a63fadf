//! Tiny models in memory and their forward pass in f64, written as naively as possible: the oracle of the folding tests.
//!
//! One pass serves all architectures: what a block has is seen by the names of its tensors, the rest is in [`Style`].

use std::collections::BTreeMap;

use tcq4::model::{Arch, Shape};

pub const EMBD: usize = 16;
pub const HEADS: usize = 4;
pub const KV: usize = 2;
pub const HEAD: usize = 4;
pub const FF: usize = 24;
pub const EXPERTS: usize = 4;
pub const BLOCKS: usize = 2;
pub const VOCAB: usize = 11;

/// A tensor: extents (fastest first) and values.
pub type Tensor = (Vec<u64>, Vec<f32>);

/// What tensor names do not say.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Style {
    /// Layer norms instead of RMS norms.
    pub layer_norm: bool,
    /// GELU instead of SiLU.
    pub gelu: bool,
    /// Attention and feed-forward network read the same norm.
    pub parallel: bool,
    /// Gate and up in `ffn_up`.
    pub fused_up: bool,
    /// The norm before the feed-forward network is `post_attention_norm`.
    pub ffn_behind_post: bool,
    /// The up branch is clamped.
    pub clamped: bool,
}

/// A model of one of the architectures.
pub struct Tiny {
    pub arch: Arch,
    pub style: Style,
    pub tensors: BTreeMap<String, Tensor>,
    state: u64,
}

impl Tiny {
    /// An empty model of the architecture `name`.
    pub fn new(name: &str, style: Style) -> Self {
        let arch = Arch {
            name: name.into(),
            blocks: BLOCKS as u64,
            embedding: EMBD as u64,
            heads: vec![HEADS as u64],
            kv_heads: vec![KV as u64],
            ..Arch::default()
        };
        let mut tiny = Self { arch, style, tensors: BTreeMap::new(), state: 0x9e37_79b9_7f4a_7c15 };
        tiny.add("token_embd.weight", &[EMBD, VOCAB]);
        tiny.add("output_norm.weight", &[EMBD]);
        tiny
    }

    /// A number between -1 and 1.
    pub fn random(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Adds a random tensor; gains lie around 1.
    pub fn add(&mut self, name: &str, dims: &[usize]) {
        let shift = if name.contains("norm.weight") { 1.2 } else { 0.0 };
        let values = (0..dims.iter().product()).map(|_| self.random() * 0.7 + shift).collect();
        self.tensors.insert(name.into(), (dims.iter().map(|&d| d as u64).collect(), values));
    }

    /// Adds the same tensors to every block.
    pub fn blocks(mut self, tensors: &[(&str, &[usize])]) -> Self {
        for block in 0..BLOCKS {
            for (name, dims) in tensors {
                self.add(&format!("blk.{block}.{name}"), dims);
            }
        }
        self
    }

    /// Adds a tensor outside the blocks.
    pub fn with(mut self, name: &str, dims: &[usize]) -> Self {
        self.add(name, dims);
        self
    }

    pub fn shapes(&self) -> impl Iterator<Item = Shape<'_>> {
        self.tensors.iter().map(|(name, (dims, _))| Shape { name, dims })
    }

    fn get(&self, name: &str) -> Option<Vec<f64>> {
        self.tensors.get(name).map(|(_, values)| values.iter().map(|&v| f64::from(v)).collect())
    }

    /// `w x + b` for the matrix `at` of a stack.
    fn linear(&self, name: &str, at: usize, x: &[f64]) -> Vec<f64> {
        let (dims, _) = &self.tensors[&format!("{name}.weight")];
        let (columns, rows) = (dims[0] as usize, dims.get(1).map_or(1, |&d| d as usize));
        assert_eq!(columns, x.len(), "{name}");
        let w = self.get(&format!("{name}.weight")).unwrap();
        let w = &w[at * columns * rows..][..columns * rows];
        let mut y: Vec<f64> = w.chunks(columns).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        if let Some(bias) = self.get(&format!("{name}.bias")) {
            y.iter_mut().zip(&bias[at * rows..]).for_each(|(y, b)| *y += b);
        }
        y
    }

    /// The norm of this name; the input itself if there is none.
    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let Some(gain) = self.get(&format!("{name}.weight")) else { return x.to_vec() };
        let n = x.len() as f64;
        let mean = if self.style.layer_norm { x.iter().sum::<f64>() / n } else { 0.0 };
        let scale = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + 1e-6).sqrt();
        let bias = self.get(&format!("{name}.bias")).unwrap_or_else(|| vec![0.0; x.len()]);
        x.iter().enumerate().map(|(i, v)| (v - mean) / scale * gain[i] + bias[i]).collect()
    }

    fn act(&self, x: f64) -> f64 {
        if self.style.gelu {
            0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x.powi(3))).tanh())
        } else {
            x / (1.0 + (-x).exp())
        }
    }

    /// A feed-forward network or one expert of it: `suffix` is "", "_exps" or "_shexp".
    fn ffn(&self, block: &str, suffix: &str, at: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("{block}ffn_{part}{suffix}");
        let has = |part: &str| self.tensors.contains_key(&format!("{}.weight", name(part)));
        let (gate, mut up) = if has("gate_up") || self.style.fused_up {
            let both = self.linear(&name(if has("gate_up") { "gate_up" } else { "up" }), at, x);
            let (gate, up) = both.split_at(both.len() / 2);
            (Some(gate.to_vec()), up.to_vec())
        } else {
            (has("gate").then(|| self.linear(&name("gate"), at, x)), self.linear(&name("up"), at, x))
        };
        if self.style.clamped {
            up = up.iter().map(|u| u.clamp(-0.5, 0.5) + 1.0).collect();
        }
        let inner: Vec<f64> = match gate {
            Some(gate) => gate.iter().zip(&up).map(|(&g, u)| self.act(g) * u).collect(),
            None => up.iter().map(|&u| self.act(u)).collect(),
        };
        self.linear(&name("down"), at, &inner)
    }

    /// The feed-forward part of a block: dense, or two of four experts and the shared one.
    fn feed_forward(&self, block: &str, x: &[f64]) -> Vec<f64> {
        if !self.tensors.contains_key(&format!("{block}ffn_gate_inp.weight")) {
            return self.ffn(block, "", 0, x);
        }
        let logits = self.linear(&format!("{block}ffn_gate_inp"), 0, x);
        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
        let mut best: Vec<usize> = (0..EXPERTS).collect();
        best.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let mut y = vec![0.0; EMBD];
        for &expert in &best[..2] {
            let weight = logits[expert].exp() / sum;
            self.ffn(block, "_exps", expert, x).iter().zip(&mut y).for_each(|(v, y)| *y += weight * v);
        }
        if self.tensors.contains_key(&format!("{block}ffn_up_shexp.weight")) {
            let gate = self.linear(&format!("{block}ffn_gate_inp_shexp"), 0, x)[0];
            let gate = 1.0 / (1.0 + (-gate).exp());
            self.ffn(block, "_shexp", 0, x).iter().zip(&mut y).for_each(|(v, y)| *y += gate * v);
        }
        y
    }

    /// Causal attention with rotated, perhaps normed queries and keys, over normed inputs.
    fn attention(&self, block: &str, xs: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (q_len, kv_len) = (HEADS * HEAD, KV * HEAD);
        let project = |x: &Vec<f64>| {
            if self.tensors.contains_key(&format!("{block}attn_qkv.weight")) {
                let all = self.linear(&format!("{block}attn_qkv"), 0, x);
                (all[..q_len].to_vec(), all[q_len..q_len + kv_len].to_vec(), all[q_len + kv_len..].to_vec())
            } else {
                let part = |name: &str| self.linear(&format!("{block}{name}"), 0, x);
                (part("attn_q"), part("attn_k"), part("attn_v"))
            }
        };
        let head_norm =
            |name: &str, x: Vec<f64>| x.chunks(HEAD).flat_map(|h| self.norm(&format!("{block}{name}"), h)).collect();
        let qkv: Vec<(Vec<f64>, Vec<f64>, Vec<f64>)> = xs
            .iter()
            .enumerate()
            .map(|(at, x)| {
                let (q, k, v) = project(x);
                (rope(head_norm("attn_q_norm", q), at), rope(head_norm("attn_k_norm", k), at), v)
            })
            .collect();
        (0..xs.len())
            .map(|at| {
                let mut y = vec![0.0; q_len];
                for head in 0..HEADS {
                    let kv = head / (HEADS / KV) * HEAD;
                    let q = &qkv[at].0[head * HEAD..][..HEAD];
                    let score = |past: usize| q.iter().zip(&qkv[past].1[kv..]).map(|(q, k)| q * k).sum::<f64>().exp();
                    let total: f64 = (0..=at).map(score).sum();
                    for (past, (_, _, v)) in qkv.iter().enumerate().take(at + 1) {
                        let weight = score(past) / total;
                        (0..HEAD).for_each(|i| y[head * HEAD + i] += weight * v[kv + i]);
                    }
                }
                self.linear(&format!("{block}attn_output"), 0, &y)
            })
            .collect()
    }

    /// The logits of every position.
    pub fn forward(&self, tokens: &[usize]) -> Vec<Vec<f64>> {
        let embedding = self.get("token_embd.weight").unwrap();
        let mut stream: Vec<Vec<f64>> = tokens.iter().map(|t| embedding[t * EMBD..][..EMBD].to_vec()).collect();
        for block in 0..BLOCKS {
            let block = format!("blk.{block}.");
            let normed: Vec<Vec<f64>> = stream.iter().map(|x| self.norm(&format!("{block}attn_norm"), x)).collect();
            let post_attn = if self.style.ffn_behind_post { "none" } else { "post_attention_norm" };
            for (at, y) in self.attention(&block, &normed).into_iter().enumerate() {
                let y = self.norm(&format!("{block}{post_attn}"), &y);
                add(&mut stream[at], &y);
                let ffn_norm = if self.style.ffn_behind_post { "post_attention_norm" } else { "ffn_norm" };
                let x = if self.style.parallel {
                    normed[at].clone()
                } else {
                    self.norm(&format!("{block}{ffn_norm}"), &stream[at])
                };
                let y = self.norm(&format!("{block}post_ffw_norm"), &self.feed_forward(&block, &x));
                add(&mut stream[at], &y);
            }
        }
        let head = if self.tensors.contains_key("output.weight") { "output" } else { "token_embd" };
        stream.iter().map(|x| self.linear(head, 0, &self.norm("output_norm", x))).collect()
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Rotates neighbouring pairs of each head by the position.
fn rope(mut x: Vec<f64>, at: usize) -> Vec<f64> {
    for head in x.chunks_mut(HEAD) {
        for (pair, xy) in head.chunks_mut(2).enumerate() {
            let (sin, cos) = (at as f64 / 10f64.powi(pair as i32)).sin_cos();
            (xy[0], xy[1]) = (xy[0] * cos - xy[1] * sin, xy[0] * sin + xy[1] * cos);
        }
    }
    x
}
