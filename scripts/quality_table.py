#!/usr/bin/env python3
"""The measurements of quality_table.sh: every row is a model and an activation path, every text a group of columns."""
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TCQ4, LLAMA, MODEL = os.environ["TCQ4"], Path(os.environ["LLAMA_BIN"]), os.environ["MODEL"]
TEXT = Path(os.environ["TEXT_DIR"])
CHUNKS = os.environ.get("CHUNKS", "20")
RECORDS = os.environ.get("RECORDS")
ONLY = re.compile(os.environ.get("ONLY", ""))
TRAIN = str(TEXT / "wikitext2-train-head.raw")
TEXTS = {
    "WikiText-2": ["-f", str(TEXT / "wikitext2-test.raw")],
    "C4": ["-f", str(TEXT / "c4-validation-head.txt")],
    "AG News": ["-d", str(TEXT / "ag-news-test-head.csv"), "--text-column", "2+3"],
}
TYPES = ["Q8_0", "Q4_0", "Q4_K_S", "Q4_K_S + imatrix"]
CONVERSIONS = {
    "TCQ4, parity": ["quantize", "--encoder", "parity"],
    "TCQ4, default": ["quantize"],
    "TCQ4, calibrated": ["convert", "-c", TRAIN],
    "TCQ4, best": ["convert", "--preset", "best", "-c", TRAIN],
}
PATHS = {"weights only": [], "INT8": ["--simulate", "a8"], "INT4, 32": ["--simulate", "a4-g32"], "INT4, 256": ["--simulate", "a4-g256"]}


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def bits(path):
    return json.loads(run([TCQ4, "--json", "inspect", path]))["bits_per_weight"]


def base(work, text):
    """Where the log-probabilities of the F16 model on a text are."""
    return Path(work) / f"{text.replace(' ', '-')}.kld"


def cells(work, path, simulate, name):
    """Perplexity, KL divergence and same top token on each text."""
    row = []
    for text in TEXTS:
        record = json.loads(run([TCQ4, "--json", "eval", path, "--logits", base(work, text), *simulate]))
        if RECORDS:
            Path(RECORDS).mkdir(parents=True, exist_ok=True)
            file = "".join(c if c.isalnum() else "-" for c in f"{name} {text}")
            (Path(RECORDS) / f"{file}.json").write_text(json.dumps(record))
        kld, top = record["kld"], record["same_top"]
        print(f"{name}, {text}: {record['perplexity']:.4f}, {kld['value']:.4f}", file=sys.stderr, flush=True)
        row += [f"{record['perplexity']:.2f} ± {record['error']:.2f}", f"{abs(kld['value']):.4f} ± {kld['error']:.4f}", f"{100 * top['value']:.1f}"]
    return row


def main():
    heads = ["what", "activations", "bits a weight"] + [f"{text}: {what}" for text in TEXTS for what in ("perplexity", "KL divergence", "same top %")]
    print(f"{Path(MODEL).name}, {CHUNKS} x 512 tokens of each text, against the F16 model\n")
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    with tempfile.TemporaryDirectory() as work:
        out, imatrix = Path(work) / "model.gguf", Path(work) / "imatrix.gguf"

        def row(name, path, activations, simulate):
            if ONLY.search(name):
                print("| " + " | ".join([name, activations, f"{bits(path):.2f}", *cells(work, path, simulate, f"{name} {activations}")]) + " |", flush=True)

        for text, source in TEXTS.items():
            run([TCQ4, "eval", MODEL, *source, "--chunks", CHUNKS, "--logits-out", base(work, text)])
        row("F16", MODEL, "as they are", [])
        if any(map(ONLY.search, TYPES)):
            run([LLAMA / "llama-imatrix", "-m", MODEL, "-f", TRAIN, "-o", imatrix, "-c", "512", "--chunks", "32"])
        for kind in filter(ONLY.search, TYPES):
            options = ["--imatrix", imatrix] if "imatrix" in kind else []
            run([LLAMA / "llama-quantize", *options, MODEL, out, kind.split()[0]])
            row(kind, out, "INT8 (llama.cpp)", [])
        for name in filter(ONLY.search, CONVERSIONS):
            command, *options = CONVERSIONS[name]
            target = ["-o", out] if command == "convert" else [out]
            run([TCQ4, "--quiet", command, MODEL, *target, "--force", *options])
            for activations, simulate in PATHS.items():
                row(name, out, activations, simulate)


main()
