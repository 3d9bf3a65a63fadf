#!/usr/bin/env python3
"""Makes GGUF files for check_models.cpp out of others: a mixture of experts, an adapter, and files that must be refused. Needs no packages.

usage: make_gguf.py moe   MODEL.gguf OUT.gguf      F16 model of the llama architecture with 4 experts a block, of which 2 are used
       make_gguf.py lora  MODEL.gguf OUT.gguf      random adapter of rank 4 for all linear layers
       make_gguf.py CHANGE MODEL.gguf OUT.gguf     a TCQ4_K32 model with one thing changed, see CHANGES
"""
import array
import random
import struct
import sys

F32, F16, TCQ4 = 0, 1, 80
U32, I32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ALIGNMENT = 32


class Tensor:
    def __init__(self, name, dims, kind, data):
        self.name, self.dims, self.kind, self.data = name, list(dims), kind, data


class Gguf:
    """Keys as (type, bytes of the value), tensors with their bytes."""

    def __init__(self, path=None):
        self.keys, self.tensors = {}, []
        if path is None:
            return
        self.bytes, self.at = open(path, "rb").read(), 8
        n_tensors, n_keys = self.take("<QQ")
        for _ in range(n_keys):
            name, (kind,) = self.text(), self.take("<I")
            begin = self.at
            self.skip(kind)
            self.keys[name] = (kind, self.bytes[begin : self.at])
        infos = []
        for _ in range(n_tensors):
            name, (n_dims,) = self.text(), self.take("<I")
            infos.append((name, self.take(f"<{n_dims}Q"), *self.take("<IQ")))
        start = -(-self.at // ALIGNMENT) * ALIGNMENT
        ends = sorted(info[3] for info in infos)[1:] + [len(self.bytes) - start]
        end_of = dict(zip(sorted(info[3] for info in infos), ends))
        for name, dims, kind, offset in infos:
            self.tensors.append(Tensor(name, dims, kind, self.bytes[start + offset : start + end_of[offset]]))

    def take(self, form):
        values = struct.unpack_from(form, self.bytes, self.at)
        self.at += struct.calcsize(form)
        return values

    def text(self):
        (size,) = self.take("<Q")
        self.at += size
        return self.bytes[self.at - size : self.at].decode()

    def skip(self, kind):
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            of, count = self.take("<IQ")
            for _ in range(count if of == STRING else 0):
                self.text()
            self.at += 0 if of == STRING else count * SIZES[of]
        else:
            self.at += SIZES[kind]

    def write(self, path):
        text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
        padded = lambda b: b + bytes(-len(b) % ALIGNMENT)
        head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys)))
        for name, (kind, value) in self.keys.items():
            head += text(name) + struct.pack("<I", kind) + value
        data = bytearray()
        for t in self.tensors:
            head += text(t.name) + struct.pack(f"<I{len(t.dims)}QIQ", len(t.dims), *t.dims, t.kind, len(data))
            data += padded(t.data)
        open(path, "wb").write(padded(bytes(head)) + data)

    def tensor(self, name):
        return next(t for t in self.tensors if t.name == name)

    def set(self, name, kind, form, *values):
        self.keys[name] = (kind, struct.pack(form, *values))

    def set_text(self, name, value):
        self.keys[name] = (STRING, struct.pack("<Q", len(value)) + value.encode())


# --- models and adapters


def moe(model):
    """Experts are the model's feed-forward network with its hidden channels in another order each, times a factor: whoever mixes up experts of one
    matrix with those of another gets noise."""
    rng = random.Random(42)
    hidden = lambda t: t.dims[0] if t.name.endswith("ffn_down.weight") else t.dims[1]
    made = Gguf()
    made.keys = dict(model.keys)
    made.set("llama.expert_count", U32, "<I", 4)
    made.set("llama.expert_used_count", U32, "<I", 2)
    orders = {}
    for t in model.tensors:
        part = t.name.split(".")[-2]
        if part not in ("ffn_gate", "ffn_up", "ffn_down"):
            made.tensors.append(t)
            continue
        block = t.name.split(".")[1]
        if block not in orders:
            orders[block] = [rng.sample(range(hidden(t)), hidden(t)) for _ in range(4)]
            width = t.dims[1] if part == "ffn_down" else t.dims[0]
            gate = struct.pack(f"<{4 * width}f", *(rng.gauss(0, 0.05) for _ in range(4 * width)))
            made.tensors.append(Tensor(f"blk.{block}.ffn_gate_inp.weight", [width, 4], F32, gate))
        values = array.array("H")
        values.frombytes(t.data[: 2 * t.dims[0] * t.dims[1]])
        columns, out = t.dims[0], bytearray()
        for order, factor in zip(orders[block], (0.7, 0.9, 1.1, 1.3)):
            for row in order if part != "ffn_down" else range(t.dims[1]):
                line = values[columns * row : columns * (row + 1)]
                if part == "ffn_down":
                    floats = struct.unpack(f"<{columns}e", line.tobytes())
                    out += struct.pack(f"<{columns}e", *(factor * floats[i] for i in order))
                else:
                    out += line.tobytes()
        made.tensors.append(Tensor(f"blk.{block}.{part}_exps.weight", [*t.dims, 4], F16, bytes(out)))
    return made


def lora(model):
    rng = random.Random(7)
    made = Gguf()
    made.set_text("general.type", "adapter")
    made.set_text("general.architecture", "llama")
    made.set_text("adapter.type", "lora")
    made.set("adapter.lora.alpha", FLOAT, "<f", 8.0)
    normal = lambda n, deviation: struct.pack(f"<{n}f", *(rng.gauss(0, deviation) for _ in range(n)))
    for t in model.tensors:
        if t.name.startswith("blk.") and len(t.dims) == 2:
            columns, rows = t.dims
            made.tensors.append(Tensor(f"{t.name}.lora_a", [columns, 4], F32, normal(4 * columns, columns**-0.5)))
            made.tensors.append(Tensor(f"{t.name}.lora_b", [4, rows], F32, normal(4 * rows, 0.05)))
    return made


# --- changes; each returns the changed file

MATRIX = "blk.0.ffn_down.weight"
PERM = f"tcq4.{MATRIX}.perm"
MARK = f"tcq4.{MATRIX}.activations"
NORM = "blk.0.attn_norm.weight"


def perm(model, values, kind=I32, name=PERM):
    model.set(name, ARRAY, f"<IQ{len(values)}{ {I32: 'i', U32: 'I', FLOAT: 'f'}[kind] }", kind, len(values), *values)


def entries(model):
    return list(struct.unpack_from(f"<{model.tensor(MATRIX).dims[0]}i", model.keys[PERM][1], 12))


def with_twice(model):
    values = entries(model)
    perm(model, values[:-1] + values[:1])


def with_scale(model):
    t = model.tensor(MATRIX)
    t.data = t.data[:1024] + struct.pack("<H", 0x7C00) + t.data[1026:]  # S[0] of the first tile


def mark(model, *parts, path="int8"):
    for t in model.tensors:
        if t.kind == TCQ4 and any(part in t.name for part in parts):
            model.set_text(f"tcq4.{t.name}.activations", path)


def without(model, suffix):
    model.keys = {name: value for name, value in model.keys.items() if not (name.startswith("tcq4.") and name.endswith(suffix))}


def with_dims(model, *dims):
    model.tensor(MATRIX).dims = list(dims)


CHANGES = {
    # not hostile
    "no-perms": lambda m: without(m, ".perm"),
    "reorder-off": lambda m: m.set("tcq4.reorder.enabled", BOOL, "<?", False),
    "no-marks": lambda m: without(m, ".activations"),
    "mark-int8": lambda m: mark(m, ""),
    "mark-k": lambda m: mark(m, ".attn_k."),
    "mark-kv": lambda m: mark(m, ".attn_k.", ".attn_v."),
    "mark-int4": lambda m: mark(m, "", path="int4-fork"),
    # hostile
    "perm-short": lambda m: perm(m, entries(m)[:-1]),
    "perm-twice": with_twice,
    "perm-large": lambda m: perm(m, entries(m)[:-1] + [1 << 30]),
    "perm-negative": lambda m: perm(m, entries(m)[:-1] + [-1]),
    "perm-unsigned": lambda m: perm(m, entries(m), U32),
    "perm-floats": lambda m: perm(m, entries(m), FLOAT),
    "perm-scalar": lambda m: m.set(PERM, I32, "<i", 0),
    "perm-empty": lambda m: perm(m, []),
    "perm-of-nothing": lambda m: perm(m, entries(m), name="tcq4.blk.99.attn_q.weight.perm"),
    "perm-of-norm": lambda m: perm(m, list(range(m.tensor(NORM).dims[0])), name=f"tcq4.{NORM}.perm"),
    "version": lambda m: m.set("tcq4.version", U32, "<I", 2),
    "reorder-text": lambda m: m.set_text("tcq4.reorder.enabled", "yes"),
    "mark-unknown": lambda m: m.set_text(MARK, "int5"),
    "mark-number": lambda m: m.set(MARK, U32, "<I", 8),
    "mark-of-nothing": lambda m: m.set_text("tcq4.blk.99.attn_q.weight.activations", "int8"),
    "mark-of-norm": lambda m: m.set_text(f"tcq4.{NORM}.activations", "int8"),
    "marks-unknown": lambda m: m.set_text("tcq4.activations", "int5"),
    "rows": lambda m: with_dims(m, m.tensor(MATRIX).dims[0], m.tensor(MATRIX).dims[1] - 4),
    "columns": lambda m: with_dims(m, m.tensor(MATRIX).dims[0] - 128, 2 * m.tensor(MATRIX).dims[1]),
    "huge": lambda m: with_dims(m, 1 << 40, 1 << 40),
    "scale": with_scale,
    "truncated": lambda m: None,
}


def main():
    way, source, out = sys.argv[1:]
    model = Gguf(source)
    if way in ("moe", "lora"):
        {"moe": moe, "lora": lora}[way](model).write(out)
        return
    if way.startswith("type-"):
        model.tensor(MATRIX).kind = int(way[5:])
    else:
        CHANGES[way](model)
    model.write(out)
    if way == "truncated":
        with open(out, "r+b") as file:
            file.truncate(len(open(out, "rb").read()) * 2 // 3)


if __name__ == "__main__":
    main()
