#!/usr/bin/env python3
"""Writes a large F16 GGUF model in shards that takes little room on the disk, for measuring memory and speed of conversions.

usage: large_model.py OUT.gguf [--size GB] [--random GB] [--shard GB] [--dense]
It has the shapes of real models: layers of 8 experts (3-D tensors, one expert wide, one narrow), and dense layers among them. The weights of the first
--random gigabytes are random, from one block of noise; the rest are holes, which read as zeros without a disk: what they show is memory, not speed.
Needs numpy.
"""
import argparse
import struct

import numpy as np

WIDTH, FFN, EXPERT_FFN, EXPERTS, HEAD, KV = 4096, 14336, 3584, 8, 128, 1024
VOCABULARY = 32000
F32, F16 = 0, 1
ALIGN = 32


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def key(name, value):
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(name) + struct.pack("<If", 6, value)
    return text(name) + struct.pack("<II", 4, value)


def short(name, value):
    return text(name) + struct.pack("<IH", 2, value)


def layer(index, dense):
    names = [("attn_norm", [WIDTH], F32), ("attn_q", [WIDTH, WIDTH], F16), ("attn_k", [WIDTH, KV], F16),
             ("attn_v", [WIDTH, KV], F16), ("attn_output", [WIDTH, WIDTH], F16), ("ffn_norm", [WIDTH], F32)]
    if dense:
        names += [("ffn_gate", [WIDTH, FFN], F16), ("ffn_up", [WIDTH, FFN], F16), ("ffn_down", [FFN, WIDTH], F16)]
    else:
        names += [("ffn_gate_inp", [WIDTH, EXPERTS], F32), ("ffn_gate_exps", [WIDTH, EXPERT_FFN, EXPERTS], F16),
                  ("ffn_up_exps", [WIDTH, EXPERT_FFN, EXPERTS], F16), ("ffn_down_exps", [EXPERT_FFN, WIDTH, EXPERTS], F16)]
    return [(f"blk.{index}.{name}.weight", dims, kind) for name, dims, kind in names]


def nbytes(tensor):
    return int(np.prod(tensor[1], dtype=np.int64)) * (4 if tensor[2] == F32 else 2)


def padded(size):
    return -(-size // ALIGN) * ALIGN


def write_shard(path, number, count, all_tensors, tensors, keys, noise, budget):
    head = b"".join(keys) if number == 0 else b""
    splits = [short("split.no", number), short("split.count", count),
              text("split.tensors.count") + struct.pack("<Ii", 5, all_tensors)]
    infos, offset = b"", 0
    for name, dims, kind in tensors:
        infos += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
        offset += padded(nbytes((name, dims, kind)))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), (len(keys) if number == 0 else 0) + 3) + head + b"".join(splits) + infos
    start = padded(len(header))
    with open(path, "wb") as file:
        file.write(header)
        at = start
        for tensor in tensors:
            file.seek(at)
            size = nbytes(tensor)
            if tensor[2] == F32:
                file.write(np.ones(size // 4, np.float32).tobytes())
            elif budget > 0:
                for begin in range(0, size, len(noise)):
                    file.write(noise[:min(len(noise), size - begin)])
                budget -= size
            at += padded(size)
        file.truncate(at)
    return budget


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--size", type=float, default=30)
    parser.add_argument("--random", type=float, default=4)
    parser.add_argument("--shard", type=float, default=4)
    parser.add_argument("--dense", action="store_true", help="dense layers only, whatever their number")
    args = parser.parse_args()
    tensors = [("token_embd.weight", [WIDTH, VOCABULARY], F16)]
    layers = 0
    while sum(map(nbytes, tensors)) < args.size * 1e9:
        tensors += layer(layers, args.dense or layers % 4 == 0)
        layers += 1
    tensors += [("output_norm.weight", [WIDTH], F32), ("output.weight", [WIDTH, VOCABULARY], F16)]
    keys = [key("general.architecture", "llama"), key("general.name", "large"), key("general.file_type", 1),
            key("llama.block_count", layers), key("llama.context_length", 4096), key("llama.embedding_length", WIDTH),
            key("llama.feed_forward_length", FFN), key("llama.attention.head_count", WIDTH // HEAD),
            key("llama.attention.head_count_kv", KV // HEAD), key("llama.attention.layer_norm_rms_epsilon", 1e-5),
            key("llama.rope.dimension_count", HEAD), key("llama.expert_count", EXPERTS), key("llama.expert_used_count", 2)]
    shards = [[]]
    for tensor in tensors:
        if shards[-1] and sum(map(nbytes, shards[-1])) + nbytes(tensor) > args.shard * 1e9:
            shards.append([])
        shards[-1].append(tensor)
    noise = (np.random.default_rng(42).standard_normal(32 << 20, dtype=np.float32) * 0.02).astype(np.float16).tobytes()
    budget = int(args.random * 1e9)
    prefix = args.out.removesuffix(".gguf")
    for number, own in enumerate(shards):
        path = f"{prefix}-{number + 1:05}-of-{len(shards):05}.gguf"
        budget = write_shard(path, number, len(shards), len(tensors), own, keys, noise, budget)
    print(f"{path.replace(f'-{len(shards):05}-of', '-00001-of', 1)}: {sum(map(nbytes, tensors)) / 1e9:.1f} GB, "
          f"{layers} layers, {len(tensors)} tensors, {len(shards)} shards")


if __name__ == "__main__":
    main()
