#!/usr/bin/env bash
# The main job on the fixture model, and on real ones where they can be made (they come from PyPI): convert, verify, back to F16, perplexity.
# Fails if a step fails, or if a perplexity rises more than its model allows.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --quiet
tcq4=${CARGO_TARGET_DIR:-target}/release/tcq4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# check MODEL TEXT CTX CHUNKS MOST_PERCENT
check() {
  local name out
  name=$(basename "$1" .gguf)
  out=$work/$name-tcq4.gguf
  "$tcq4" --quiet convert "$1" -o "$out"
  "$tcq4" --quiet verify "$out" --against "$1"
  "$tcq4" --quiet dequantize "$out" "$work/$name-back.gguf"
  "$tcq4" --json eval "$1" -f "$2" --ctx "$3" --chunks "$4" >"$work/before.json"
  "$tcq4" --json eval "$work/$name-back.gguf" -f "$2" --ctx "$3" --chunks "$4" >"$work/after.json"
  python3 - "$work/before.json" "$work/after.json" "$name" "$5" <<'P'
import json, sys
before, after = (json.load(open(p))["perplexity"] for p in sys.argv[1:3])
change = (after / before - 1) * 100
print(f"{sys.argv[3]}: perplexity {before:.4f} -> {after:.4f} ({change:+.2f} %, at most +{sys.argv[4]} %)")
sys.exit(change > float(sys.argv[4]))
P
  rm -f "$out" "$work/$name-back.gguf"
}

check fixtures/models/tiny-llama-f16.gguf fixtures/text/evaluation.txt 256 20 5
if models=$(scripts/get_models.sh); then
  for model in $models; do
    check "$model" fixtures/text/evaluation.txt 512 10 12
  done
else
  echo "end to end: the real models cannot be made here (no PyPI?): skipped"
fi
