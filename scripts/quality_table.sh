#!/usr/bin/env bash
# Makes the README's table of quality over several texts: an F16 model, llama.cpp's types and TCQ4 with the activations of different run times,
# all measured by `tcq4 eval` against the F16 model. Prints Markdown; a JSON record of each row goes to RECORDS, if that is set.
# Usage: TEXT_DIR=FOLDER scripts/quality_table.sh ; the folder holds wikitext2-test.raw, wikitext2-train-head.raw, c4-validation-head.txt and ag-news-test-head.csv.
# Environment besides: MODEL, CHUNKS (default 20), ONLY (rows whose name matches this regular expression), TCQ4 and LLAMA_BIN (the program, the folder of llama.cpp's; built if not given). Needs 1.5 GB in TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
[[ -n ${TCQ4:-} ]] || cargo build --release --quiet
export TCQ4=${TCQ4:-${CARGO_TARGET_DIR:-target}/release/tcq4}
LLAMA_BIN=${LLAMA_BIN:-$(scripts/get_llama_cpp.sh --build)/build/bin}
export LLAMA_BIN
scripts/get_models.sh >/dev/null
export MODEL=${MODEL:-${XDG_CACHE_HOME:-$HOME/.cache}/tcq4-models/smollm2-768-f16.gguf}
exec python3 scripts/quality_table.py
