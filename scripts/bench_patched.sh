#!/usr/bin/env bash
# Measures the speed of TCQ4_K32 in the patched llama.cpp beside Q4_K_S and Q4_0: llama-bench of the three files in turn, medians over the rounds. Prints Markdown.
#
# usage: bench_patched.sh MODEL-F16.gguf
# Environment: ROUNDS (3), THREADS (2), PROMPT (512), GENERATE (64); PATCHED is the tree to build in (default: target/patched/llama.cpp).
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1
bin=$(scripts/build_patched_llama_cpp.sh "${PATCHED:-target/patched/llama.cpp}" llama-bench llama-quantize)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
types=(TCQ4_K32 Q4_K_S Q4_0)
for type in "${types[@]}"; do
  "$bin/llama-quantize" "$model" "$work/$type.gguf" "$type" >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; exit 1; }
done
for _ in $(seq "${ROUNDS:-3}"); do
  for type in "${types[@]}"; do
    "$bin/llama-bench" -m "$work/$type.gguf" -t "${THREADS:-2}" -p "${PROMPT:-512}" -n "${GENERATE:-64}" -r 2 -o json 2>"$work/log" >"$work/record" || { tail -n 5 "$work/log" >&2; exit 1; }
    python3 - "$type" "$work/record" >>"$work/rates" <<'P'
import json, sys
for test in json.load(open(sys.argv[2])):
    print(sys.argv[1], "generation" if test["n_gen"] else "prompt", test["avg_ts"])
P
  done
done
python3 - "$work/rates" "${types[@]}" <<'P'
import statistics, sys
rates = {}
for line in open(sys.argv[1]):
    ty, test, rate = line.split()
    rates.setdefault((ty, test), []).append(float(rate))
print("| tokens a second, medians | prompt | generation |\n| --- | --- | --- |")
for ty in sys.argv[2:]:
    print(f"| {ty} | " + " | ".join(f"{statistics.median(rates[ty, test]):.4g}" for test in ("prompt", "generation")) + " |")
P
