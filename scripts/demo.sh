#!/usr/bin/env bash
# From a fresh checkout to a converted, verified model and its perplexity before and after, on the small model of fixtures/.
# Needs Rust and a C++ compiler; installs cmake and libclang where they are missing. Arguments: [MODEL [OUTPUT]].
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:-fixtures/models/tiny-llama-f16.gguf}
output=${2:-target/demo/$(basename "${model%-f16.gguf}")-tcq4.gguf}
scripts/setup.sh
cargo build --release --quiet
tcq4=${CARGO_TARGET_DIR:-target}/release/tcq4
mkdir -p "$(dirname "$output")"
text=fixtures/text/evaluation.txt

"$tcq4" convert "$model" -o "$output" --force
echo
"$tcq4" verify "$output" --against "$model"
echo
echo "perplexity before:"
"$tcq4" eval "$model" -f "$text" --ctx 256 --chunks 40
echo "perplexity after:"
"$tcq4" eval "$output" -f "$text" --ctx 256 --chunks 40
