#!/usr/bin/env bash
# Runs every test: the part that builds without llama.cpp, then the whole crate, whose program stays in the target folder; closes with one line of counts.
# Needs Rust and a C++ compiler; installs cmake, libclang and, for some tests, Chromium, numpy and NVRTC where they are missing. Arguments go to `cargo test`.
# Where TCQ4_LLAMA_BIN names the folder of llama.cpp's programs, the tests against them run too.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
python=$(scripts/setup.sh --tests)
if [[ -n $python ]]; then
  export TCQ4_PYTHON=$python
  nvrtc=$(compgen -G "${python%/bin/python}/lib/python3*/site-packages/nvidia/*/lib/libnvrtc.so*" | head -n 1 || true)
  [[ -z $nvrtc || -n ${TCQ4_NVRTC_DIR:-} ]] || export TCQ4_NVRTC_DIR=${nvrtc%/*}
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --no-default-features "$@" 2>&1 | tee "$log"
cargo test --release "$@" 2>&1 | tee -a "$log"
if [[ -n ${TCQ4_LLAMA_BIN:-} ]]; then
  cargo test --release --test it peer_ -- --ignored 2>&1 | tee -a "$log"
fi
# A test that finds at run time that it cannot run says "skipped NAME: reason" and passes; it is counted as skipped here.
awk '/skipped [a-z_:]+: / { passed--; skipped++ } /^test result:/ { passed += $4; failed += $6; skipped += $8 } END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
