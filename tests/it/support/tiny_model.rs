//! Builds a tiny model of the llama architecture in code: random weights, a byte-level vocabulary, any dimensions. llama.cpp loads it; it has learned nothing.

use std::path::Path;

use half::f16;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tcq4::gguf::{GgmlType, Metadata, Plan, Sharding, TensorSpec, Writer};

/// The shape of a model.
#[derive(Clone, Debug)]
pub struct TinyModel {
    /// Length of the residual stream.
    pub width: u64,
    /// Length of the feed-forward layer.
    pub feed_forward: u64,
    /// Attention heads; `width` is a multiple.
    pub heads: u64,
    /// Key and value heads; `heads` is a multiple.
    pub kv_heads: u64,
    /// Layers.
    pub layers: u64,
    /// Experts of each layer; 0 for a dense model.
    pub experts: u64,
    /// Whether the output head is a tensor of its own.
    pub output: bool,
    /// The type of the matrices: F16, BF16 or F32.
    pub ty: GgmlType,
    /// The seed of the weights.
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> TinyModel {
        let (width, feed_forward, heads, kv_heads, layers) = (256, 512, 4, 2, 2);
        TinyModel { width, feed_forward, heads, kv_heads, layers, experts: 0, output: true, ty: GgmlType::F16, seed: 1 }
    }
}

/// Three control tokens and one token a byte.
const VOCABULARY: u64 = 3 + 256;

impl TinyModel {
    /// Lists the tensors.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let spec = |name: String, dims: Vec<u64>, ty| TensorSpec { name, dims, ty };
        let matrix = |name: String, columns, rows| spec(name, vec![columns, rows], self.ty);
        let (width, narrow) = (self.width, self.width / self.heads * self.kv_heads);
        let mut list = vec![matrix("token_embd.weight".into(), width, VOCABULARY)];
        for layer in 0..self.layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            list.push(spec(name("attn_norm"), vec![width], GgmlType::F32));
            list.push(matrix(name("attn_q"), width, width));
            list.push(matrix(name("attn_k"), width, narrow));
            list.push(matrix(name("attn_v"), width, narrow));
            list.push(matrix(name("attn_output"), width, width));
            list.push(spec(name("ffn_norm"), vec![width], GgmlType::F32));
            if self.experts == 0 {
                list.push(matrix(name("ffn_gate"), width, self.feed_forward));
                list.push(matrix(name("ffn_up"), width, self.feed_forward));
                list.push(matrix(name("ffn_down"), self.feed_forward, width));
            } else {
                let experts = |part: &str, columns, rows| spec(name(part), vec![columns, rows, self.experts], self.ty);
                list.push(spec(name("ffn_gate_inp"), vec![width, self.experts], GgmlType::F32));
                list.push(experts("ffn_gate_exps", width, self.feed_forward));
                list.push(experts("ffn_up_exps", width, self.feed_forward));
                list.push(experts("ffn_down_exps", self.feed_forward, width));
            }
        }
        list.push(spec("output_norm.weight".into(), vec![width], GgmlType::F32));
        if self.output {
            list.push(matrix("output.weight".into(), width, VOCABULARY));
        }
        list
    }

    /// Lists the keys.
    pub fn metadata(&self) -> Metadata {
        let mut keys = Metadata::new();
        keys.set("general.architecture", "llama");
        keys.set("general.name", "tiny");
        keys.set("general.file_type", 1u32);
        keys.set("llama.context_length", 256u32);
        keys.set("llama.embedding_length", self.width as u32);
        keys.set("llama.block_count", self.layers as u32);
        keys.set("llama.feed_forward_length", self.feed_forward as u32);
        keys.set("llama.attention.head_count", self.heads as u32);
        keys.set("llama.attention.head_count_kv", self.kv_heads as u32);
        keys.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        keys.set("llama.rope.dimension_count", (self.width / self.heads) as u32);
        keys.set("llama.vocab_size", VOCABULARY as u32);
        if self.experts > 0 {
            keys.set("llama.expert_count", self.experts as u32);
            keys.set("llama.expert_used_count", self.experts.min(2) as u32);
        }
        vocabulary(&mut keys);
        keys
    }

    /// Writes the model as one file.
    pub fn write(&self, path: &Path) {
        self.write_sharded(path, &Sharding::Single);
    }

    /// Writes the model divided into files.
    pub fn write_sharded(&self, path: &Path, sharding: &Sharding) {
        self.write_edited(path, sharding, |_, _| ());
    }

    /// Writes the model after `edit` has changed the data of some tensors, given their names.
    pub fn write_edited(&self, path: &Path, sharding: &Sharding, edit: impl Fn(&str, &mut [u8])) {
        let dialect = tcq4::gguf::Dialect::Upstream;
        let plan = Plan::sharded(&self.metadata(), self.tensors(), 32, sharding, dialect).expect("a plan");
        let writer = Writer::create(path, &plan, false, &[]).expect("an output");
        for (index, tensor) in plan.tensors().iter().enumerate() {
            let mut data = self.data(tensor);
            edit(&tensor.name, &mut data);
            writer.write(index, 0, &data).expect("a tensor");
        }
        writer.commit().expect("a finished output");
    }

    /// Makes the data of a tensor: norms near 1, matrices with the variance that keeps the length of their input.
    pub fn data(&self, tensor: &TensorSpec) -> Vec<u8> {
        // The stream depends on the name, not on the order of the tensors.
        let stream = tensor
            .name
            .bytes()
            .fold(self.seed, |hash, byte| hash.wrapping_mul(0x0000_0100_0000_01b3) ^ u64::from(byte));
        let mut random = ChaCha8Rng::seed_from_u64(stream);
        let norm = tensor.name.contains("_norm");
        let scale = (3.0 / tensor.dims[0] as f32).sqrt();
        let count = tensor.dims.iter().product::<u64>() as usize;
        let mut bytes = Vec::with_capacity(4 * count);
        for _ in 0..count {
            let uniform = random.random_range(-1.0f32..1.0);
            let value = if norm { 1.0 + 0.1 * uniform } else { scale * uniform };
            match tensor.ty {
                GgmlType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                GgmlType::BF16 => bytes.extend(half::bf16::from_f32(value).to_le_bytes()),
                _ => bytes.extend(value.to_le_bytes()),
            }
        }
        bytes
    }
}

/// Adds a vocabulary of bytes, of llama.cpp's kind "llama" (SentencePiece with byte fallback).
fn vocabulary(keys: &mut Metadata) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![6i32; tokens.len()];
    types[..3].copy_from_slice(&[2, 3, 3]);
    keys.set("tokenizer.ggml.model", "llama");
    keys.set("tokenizer.ggml.tokens", tokens.as_slice());
    keys.set("tokenizer.ggml.scores", vec![0f32; tokens.len()].as_slice());
    keys.set("tokenizer.ggml.token_type", types.as_slice());
    keys.set("tokenizer.ggml.bos_token_id", 1u32);
    keys.set("tokenizer.ggml.eos_token_id", 2u32);
    keys.set("tokenizer.ggml.unknown_token_id", 0u32);
    keys.set("tokenizer.ggml.add_bos_token", true);
}
