#!/usr/bin/env python3
"""Write an F16 copy of a llama-architecture GGUF, as it is or with a wider residual stream and the same function.

TCQ4_K32 takes matrices whose columns divide by 256, and small models seldom have them. The wide copy adds residual channels and attention
heads that are zero everywhere, and mixes the order of channels, heads and hidden units, so that no grid of an already quantised source lines
up with the groups of the format. RMSNorm divides by all channels, of which only a part is in use: its gain and its epsilon absorb the share.
The function stays the same up to rounding to F16.

    widen_model.py SOURCE TARGET
    widen_model.py SOURCE TARGET --channels 768 --kv-heads 4 --seed 1

Needs numpy and gguf. Every layout below is an index array: for each place of the copy the place of the source it takes, or -1 for zeros.
"""
import argparse

import gguf
import numpy as np

NORMS = ("attn_norm", "ffn_norm")
HANDLED = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", *NORMS}


def take(w, index, axis):
    """Gather along an axis; -1 gives zeros."""
    if index is None:
        return w
    out = np.take(w, np.maximum(index, 0), axis)
    np.moveaxis(out, axis, 0)[index < 0] = 0
    return out


def blocks_of(index, size):
    """Turn an index of heads into one of their channels."""
    return np.where(index[:, None] < 0, -1, index[:, None] * size + np.arange(size)).reshape(-1)


class Layout:
    """Draws the index arrays. The order of the draws is part of the result: the same seed always gives the same model."""

    def __init__(self, seed):
        self.rng = None if seed is None else np.random.default_rng(seed)

    def order(self, n):
        return np.arange(n) if self.rng is None else self.rng.permutation(n)

    def spread(self, used, size):
        """`used` places of the source among `size` places of the copy."""
        places = np.sort(self.order(size)[:used])
        index = np.full(size, -1)
        index[places] = self.order(used)
        return index


class Shape:
    """Dimensions of the source, and of the copy."""

    def __init__(self, reader, channels, kv_heads):
        get = lambda key: reader.fields[f"llama.{key}"].contents()
        self.channels, self.blocks, self.hidden = get("embedding_length"), get("block_count"), get("feed_forward_length")
        self.heads, self.kv_heads = get("attention.head_count"), get("attention.head_count_kv")
        self.head, self.eps = get("rope.dimension_count"), get("attention.layer_norm_rms_epsilon")
        self.group = self.heads // self.kv_heads
        self.to_channels, self.to_kv_heads = channels or self.channels, kv_heads or self.kv_heads
        self.share = self.channels / self.to_channels
        if self.to_channels < self.channels or self.to_kv_heads < self.kv_heads:
            raise SystemExit("a copy cannot be narrower than its source")

    def changed_keys(self):
        return {
            "llama.embedding_length": self.to_channels,
            "llama.attention.head_count": self.to_kv_heads * self.group,
            "llama.attention.head_count_kv": self.to_kv_heads,
            "llama.attention.layer_norm_rms_epsilon": self.eps * self.share,
        }


def head_layouts(layout, shape):
    """Index arrays of one block: rows of q, rows of k, rows of v and columns of the output matrix."""
    kv = layout.spread(shape.kv_heads, shape.to_kv_heads)
    q_heads = np.full(shape.to_kv_heads * shape.group, -1)
    values = np.full((shape.to_kv_heads, shape.head), -1)
    mixed = np.full((shape.to_kv_heads, shape.group, shape.head), -1)
    for to, source in enumerate(kv):
        if source >= 0:
            channel, members = layout.order(shape.head), source * shape.group + layout.order(shape.group)
            q_heads[to * shape.group : (to + 1) * shape.group] = members
            values[to] = source * shape.head + channel
            mixed[to] = members[:, None] * shape.head + channel
    return blocks_of(q_heads, shape.head), blocks_of(kv, shape.head), values.reshape(-1), mixed.reshape(-1)


def widened(weights, shape, seed):
    """Yield the name and values of every tensor of the copy."""
    layout = Layout(seed)
    wide = layout.spread(shape.channels, shape.to_channels)
    gain = lambda w: take(w, wide, 0) * np.float32(np.sqrt(shape.share))
    for name in ("token_embd.weight", "output.weight"):
        if name in weights:
            yield name, take(weights[name], wide, 1)
    yield "output_norm.weight", gain(weights["output_norm.weight"])
    for block in range(shape.blocks):
        q, k, v, mixed = head_layouts(layout, shape)
        hidden = layout.order(shape.hidden)
        rows = {"attn_q": q, "attn_k": k, "attn_v": v, "attn_output": wide, "ffn_gate": hidden, "ffn_up": hidden, "ffn_down": wide}
        columns = {"attn_output": mixed, "ffn_down": hidden}
        for part, index in rows.items():
            name = f"blk.{block}.{part}.weight"
            yield name, take(take(weights[name], index, 0), columns.get(part, wide), 1)
        for part in NORMS:
            name = f"blk.{block}.{part}.weight"
            yield name, gain(weights[name])


def copy_metadata(reader, writer, shape):
    changed = shape.changed_keys()
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, changed.get(key, field.contents()), field.types[0])
    if shape.to_channels != shape.head * shape.group * shape.to_kv_heads:
        for key in ("llama.attention.key_length", "llama.attention.value_length"):
            if key not in reader.fields:
                writer.add_uint32(key, shape.head)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("source")
    ap.add_argument("target")
    ap.add_argument("--channels", type=int, help="residual channels of the copy (default: those of the source)")
    ap.add_argument("--kv-heads", type=int, help="key/value heads of the copy; query heads keep their ratio")
    ap.add_argument("--seed", type=int, help="mix the order of channels, heads and hidden units (default: keep it)")
    a = ap.parse_args()

    reader = gguf.GGUFReader(a.source)
    arch = reader.fields["general.architecture"].contents()
    if arch != "llama":
        raise SystemExit(f"{a.source}: architecture {arch}, not llama")
    shape, weights = Shape(reader, a.channels, a.kv_heads), {}
    for t in reader.tensors:
        if t.name.startswith("blk.") and t.name.split(".", 2)[2].removesuffix(".weight") not in HANDLED:
            raise SystemExit(f"{a.source}: no rule for tensor {t.name}")
        values = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        weights[t.name] = values.reshape([int(n) for n in reversed(t.shape)])

    writer = gguf.GGUFWriter(a.target, arch)
    copy_metadata(reader, writer, shape)
    for name, values in widened(weights, shape, a.seed):
        writer.add_tensor(name, values.astype(np.float32 if values.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
