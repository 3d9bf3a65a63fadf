#!/usr/bin/env python3
"""The measurements of compare_peers.sh: runs alternate, wall times are medians, figures of different tools stand side by side.

Environment: TCQ4 (our binary), LLAMA_BIN (folder of llama.cpp's tools), MODEL (an F16 GGUF), TEXT_DIR (WikiText-2 files), RUNS (default 5),
THREADS (default 2), CHUNKS (default 20).
"""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TCQ4 = os.environ["TCQ4"]
LLAMA = Path(os.environ["LLAMA_BIN"])
MODEL = os.environ["MODEL"]
TEXT = Path(os.environ.get("TEXT_DIR", "."))
RUNS = int(os.environ.get("RUNS", "5"))
THREADS = os.environ.get("THREADS", "2")
CHUNKS = os.environ.get("CHUNKS", "20")
TEST, TRAIN = TEXT / "wikitext2-test.raw", TEXT / "wikitext2-train-head.raw"


def run(command):
    """Runs a command; returns wall seconds, user + system seconds, peak RSS in MiB and what it printed."""
    with tempfile.TemporaryFile("w+") as log:
        start = time.monotonic()
        child = subprocess.Popen([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        text = log.read()
    if child.returncode != 0:
        sys.exit(f"{command} ended with {child.returncode}:\n{text[-3000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text


def alternate(commands, runs=RUNS):
    """Runs each named command `runs` times in turn; returns the medians (wall, cpu, peak RSS) by name."""
    measured = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            measured[name].append(run(command)[:3])
    return {name: [statistics.median(column) for column in zip(*rows)] for name, rows in measured.items()}


def table(heads, rows):
    print("| " + " | ".join(heads) + " |")
    print("| " + " | ".join("---" for _ in heads) + " |")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def speed(work):
    """Wall time and peak memory of quantising, against llama-quantize Q4_K_S."""
    ours, theirs = work / "ours.gguf", work / "theirs.gguf"
    result = alternate({
        "llama-quantize Q4_K_S": [LLAMA / "llama-quantize", MODEL, theirs, "Q4_K_S", THREADS],
        "tcq4 quantize": [TCQ4, "--quiet", "--threads", THREADS, "quantize", MODEL, ours, "--force"],
        "tcq4 quantize --encoder parity": [TCQ4, "--quiet", "--threads", THREADS, "quantize", MODEL, ours, "--force", "--encoder", "parity"],
    })
    base = result["llama-quantize Q4_K_S"]
    print(f"Quantising, {THREADS} threads, medians of {RUNS} alternating runs")
    table(["command", "wall s", "ratio", "CPU s", "peak RSS MiB"],
          [[n, f"{w:.2f}", f"{w / base[0]:.2f}", f"{c:.2f}", f"{m:.0f}"] for n, (w, c, m) in result.items()])


def calibration(work):
    """Wall time of calibrating, against llama-imatrix and against the plain forward pass."""
    chunks = os.environ.get("CALIBRATION_CHUNKS", "32")
    common = ["-m", MODEL]
    result = alternate({
        "llama-imatrix": [LLAMA / "llama-imatrix", *common, "-f", TRAIN, "-o", work / "imatrix.gguf", "-c", "512", "--chunks", chunks, "-t", THREADS],
        "tcq4 calibrate": [TCQ4, "--quiet", "--threads", THREADS, "calibrate", *common, "-c", TRAIN, "-n", chunks, "--order", "none",
                           "-o", work / "perms.json", "--stats", work / "stats.gguf", "--force"],
    }, runs=min(RUNS, 3))
    base = result["llama-imatrix"]
    print(f"Calibrating on {chunks} x 512 tokens, {THREADS} threads, medians of {min(RUNS, 3)} alternating runs")
    table(["command", "wall s", "ratio", "CPU s", "peak RSS MiB"],
          [[n, f"{w:.2f}", f"{w / base[0]:.2f}", f"{c:.2f}", f"{m:.0f}"] for n, (w, c, m) in result.items()])


def field(text, pattern):
    found = re.search(pattern, text)
    return found.groups() if found else ("?",) * re.compile(pattern).groups


def quality(work):
    """Perplexity and KL divergence of the weights alone, by llama-perplexity, against the F16 model."""
    base = work / "base.kld"
    perplexity = [LLAMA / "llama-perplexity", "-f", TEST, "-c", "512", "--chunks", CHUNKS, "-t", THREADS, "--kl-divergence-base", base]
    run([*perplexity, "-m", MODEL])
    imatrix = work / "imatrix.gguf"
    run([LLAMA / "llama-imatrix", "-m", MODEL, "-f", TRAIN, "-o", imatrix, "-c", "512", "--chunks", "32", "-t", THREADS])
    rows = []

    def measure(name, path):
        size = os.path.getsize(path)
        out = run([*perplexity, "-m", path, "--kl-divergence"])[3]
        ppl, error = field(out, r"Mean PPL\(Q\)\s*:\s*([\d.]+) ±\s*([\d.]+)")
        kld, kld_error = field(out, r"Mean\s+KLD:\s*([\d.]+) ±\s*([\d.]+)")
        top, top_error = field(out, r"Same top p:\s*([\d.]+) ±\s*([\d.]+)")
        rows.append([name, bits.get(name, f"{size * 8 / weights:.2f}"), f"{ppl} ± {error}", f"{kld} ± {kld_error}", f"{top} ± {top_error}"])
        print(f"  {name}: PPL {ppl}, KLD {kld}", file=sys.stderr, flush=True)

    weights, bits = elements(MODEL), {}
    for kind, options in (("Q4_0", []), ("Q4_0 + imatrix", ["--imatrix", imatrix]), ("IQ4_NL + imatrix", ["--imatrix", imatrix]),
                          ("Q4_K_S", []), ("Q4_K_S + imatrix", ["--imatrix", imatrix])):
        path = work / "theirs.gguf"
        run([LLAMA / "llama-quantize", *options, MODEL, path, kind.split()[0], THREADS])
        measure(f"llama.cpp {kind}", path)
    calibrated = ["-c", TRAIN, "-n", "32"]
    for name, command in (("tcq4 quantize --encoder parity", ["quantize", MODEL, work / "ours.gguf", "--encoder", "parity"]),
                          ("tcq4 quantize", ["quantize", MODEL, work / "ours.gguf"]),
                          ("tcq4 convert (shipped text)", ["convert", MODEL, "-o", work / "ours.gguf"]),
                          ("tcq4 convert -c wikitext", ["convert", MODEL, "-o", work / "ours.gguf", *calibrated])):
        run([TCQ4, "--quiet", "--threads", THREADS, *command, "--force"])
        bits[name] = f"{os.path.getsize(work / 'ours.gguf') * 8 / weights:.2f}"
        run([TCQ4, "--quiet", "dequantize", work / "ours.gguf", work / "back.gguf", "--force"])
        measure(name, work / "back.gguf")
    print(f"Weights alone, {Path(MODEL).name}, {TEST.name}, {CHUNKS} x 512 tokens")
    table(["what", "bits a weight (file)", "perplexity", "mean KL divergence", "same top token %"], rows)


def elements(model):
    record = json.loads(subprocess.run([TCQ4, "--json", "inspect", model], capture_output=True, check=True, text=True).stdout)
    return record["weights"]


def main():
    parts = {"speed": speed, "calibration": calibration, "quality": quality}
    chosen = list(parts) if sys.argv[1] == "all" else [sys.argv[1]]
    with tempfile.TemporaryDirectory() as work:
        for name in chosen:
            parts[name](Path(work))


main()
