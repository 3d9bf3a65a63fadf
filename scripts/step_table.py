#!/usr/bin/env python3
"""What each step brings: KL divergence with and without it, chunk by chunk, with intervals of the paired differences.

Usage: TCQ4=PROGRAM MODEL=FILE TEXT_DIR=FOLDER scripts/step_table.py ; the folder holds wikitext2-test.raw, wikitext2-train-head.raw and c4-validation-head.txt.
Environment besides: CHUNKS of each text (default 20), SAMPLES of calibration (default 64), PATHS (names of `eval --simulate`, default "none a4-g256"). Statistics and second moments are measured once, or
taken from STATS and SECOND_MOMENTS (files of `calibrate`).
"""
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

TCQ4, MODEL, TEXT = os.environ["TCQ4"], os.environ["MODEL"], Path(os.environ["TEXT_DIR"])
CHUNKS, SAMPLES = os.environ.get("CHUNKS", "20"), os.environ.get("SAMPLES", "64")
PATHS = os.environ.get("PATHS", "none a4-g256").split()
TEXTS = {"WikiText-2": "wikitext2-test.raw", "C4": "c4-validation-head.txt"}
NOTHING = ["--scales", "none", "--order", "none"]
NEAREST = ["--rounding", "nearest"]
GPTQ = ["--rounding", "gptq"]
RECIPES = {
    "nothing": [*NOTHING, *NEAREST],
    "order": ["--scales", "none", "--order", "zigzag", *NEAREST],
    "scale": ["--scales", "closed-form", "--order", "none", *NEAREST],
    "scale, order": NEAREST,
    "scale, order, greedy": ["--rounding", "greedy"],
    "GPTQ": [*NOTHING, *GPTQ],
    "scale, order, GPTQ": [*GPTQ, "--refine", "0"],
    "scale, order, GPTQ, refine": GPTQ,
}
STEPS = [
    ("order, alone", "nothing", "order"),
    ("scale, alone", "nothing", "scale"),
    ("GPTQ, alone", "nothing", "GPTQ"),
    ("order, after the scale", "scale", "scale, order"),
    ("scale, with the order", "order", "scale, order"),
    ("greedy, after both", "scale, order", "scale, order, greedy"),
    ("GPTQ, after both", "scale, order", "scale, order, GPTQ"),
    ("refine, after GPTQ", "scale, order, GPTQ", "scale, order, GPTQ, refine"),
]
RESAMPLES = 10_000


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def interval(differences):
    """The 95 % interval of the mean of paired differences, by the bootstrap over chunks."""
    draw = random.Random(42)
    means = sorted(sum(draw.choices(differences, k=len(differences))) / len(differences) for _ in range(RESAMPLES))
    return means[RESAMPLES * 25 // 1000], means[RESAMPLES * 975 // 1000 - 1]


def measured(work):
    """The KL divergence of every chunk, by recipe, text and path."""
    stats, moments, out = (Path(work) / name for name in ("stats.gguf", "moments.gguf", "model.gguf"))
    if {"STATS", "SECOND_MOMENTS"} <= os.environ.keys():
        stats, moments = Path(os.environ["STATS"]), Path(os.environ["SECOND_MOMENTS"])
    else:
        run(TCQ4, "calibrate", "-m", MODEL, "-c", TEXT / "wikitext2-train-head.raw", "-n", SAMPLES, "-o", Path(work) / "perms.json", "--stats", stats, "--second-moments", moments)
    for text, file in TEXTS.items():
        run(TCQ4, "eval", MODEL, "-f", TEXT / file, "--chunks", CHUNKS, "--logits-out", Path(work) / text)
    found = {}
    for name, options in RECIPES.items():
        moments_option = ["--second-moments", moments] if "gptq" in options else []
        run(TCQ4, "quantize", MODEL, out, "-f", "--stats", stats, *options, *moments_option)
        for text in TEXTS:
            for path in PATHS:
                simulate = [] if path == "none" else ["--simulate", path]
                record = json.loads(run(TCQ4, "--json", "eval", out, "--logits", Path(work) / text, *simulate))
                found[name, text, path] = record["data_sets"][0]["divergence"]["chunk_kld"]
                print(f"{name}, {text}, {path}: {record['kld']['value']:.4f}", file=sys.stderr, flush=True)
    return found


def main():
    with tempfile.TemporaryDirectory() as work:
        found = measured(work)
    columns = [(text, path) for text in TEXTS for path in PATHS]
    heads = [f"{text}, {'weights only' if path == 'none' else path}" for text, path in columns]
    print(f"{Path(MODEL).name}, {CHUNKS} x 512 tokens of each text; change of the KL divergence, with 95 % intervals of the paired differences\n")
    print("| step | " + " | ".join(heads) + " |\n|" + " --- |" * (len(heads) + 1))
    for step, without, with_it in STEPS:
        cells = []
        for column in columns:
            before, after = found[without, *column], found[with_it, *column]
            low, high = interval([b - a for a, b in zip(before, after)])
            mean = [sum(values) / len(values) for values in (before, after)]
            cells.append(f"{mean[0]:.4f} → {mean[1]:.4f} ({low:+.4f} to {high:+.4f})")
        print(f"| {step} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
