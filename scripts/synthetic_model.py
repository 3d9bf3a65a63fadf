#!/usr/bin/env python3
"""Writes an F16 GGUF model of the llama architecture with random weights, for measuring speed on large shapes.

usage: synthetic_model.py VOCABULARY.gguf OUT.gguf [--width N] [--ffn N] [--layers N]
The tokenizer is that of VOCABULARY.gguf. Needs numpy, and gguf-py of a llama.cpp tree on PYTHONPATH.
"""
import argparse

import gguf
import numpy as np

HEAD = 128


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary")
    parser.add_argument("out")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--ffn", type=int, default=14336)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()

    base = gguf.GGUFReader(args.vocabulary)
    writer = gguf.GGUFWriter(args.out, "llama")
    for name, field in base.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    vocabulary = len(base.fields["tokenizer.ggml.tokens"].contents())
    heads = args.width // HEAD
    kv_heads = max(heads // 4, 1)
    writer.add_context_length(4096)
    writer.add_embedding_length(args.width)
    writer.add_block_count(args.layers)
    writer.add_feed_forward_length(args.ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    random = np.random.default_rng(42)

    def matrix(rows, columns):
        return (random.standard_normal((rows, columns), dtype=np.float32) / np.sqrt(columns)).astype(np.float16)

    ones = np.ones(args.width, dtype=np.float32)
    writer.add_tensor("token_embd.weight", matrix(vocabulary, args.width))
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(args.layers):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", ones)
        writer.add_tensor(f"{block}.attn_q.weight", matrix(args.width, args.width))
        writer.add_tensor(f"{block}.attn_k.weight", matrix(kv_heads * HEAD, args.width))
        writer.add_tensor(f"{block}.attn_v.weight", matrix(kv_heads * HEAD, args.width))
        writer.add_tensor(f"{block}.attn_output.weight", matrix(args.width, args.width))
        writer.add_tensor(f"{block}.ffn_norm.weight", ones)
        writer.add_tensor(f"{block}.ffn_gate.weight", matrix(args.ffn, args.width))
        writer.add_tensor(f"{block}.ffn_up.weight", matrix(args.ffn, args.width))
        writer.add_tensor(f"{block}.ffn_down.weight", matrix(args.width, args.ffn))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
