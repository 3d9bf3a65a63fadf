#!/usr/bin/env bash
# Compiles the CUDA code that ggml-patches/ brings llama.cpp, without a GPU, and shows what became of it: for each architecture the number of kernels,
# of those that spill registers, and the tensor core instructions. Fails where something does not compile or spills, and where INT4 instructions are
# missing on sm_75 to sm_89 or there on others.
#
# usage: compile_cuda.sh [ARCHITECTURE...]     default: 75 80 86 89 90 120
# nvcc and cuobjdump: see cuda_toolkit.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# -gt 0 ]] || set -- 75 80 86 89 90 120

. scripts/cuda_toolkit.sh

scripts/build_patched_sys.sh --copy-only >/dev/null
code=$PWD/target/patched/llama-cpp-sys-2/llama.cpp/ggml/src/ggml-cuda
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0
for arch in "$@"; do
  (cd "$code" && nvcc -std=c++17 -O3 -use_fast_math -extended-lambda "${include[@]}" -I .. -I ../../include \
    -gencode "arch=compute_$arch,code=sm_$arch" -Xptxas -v -cubin -o "$out/tcq4.cubin" tcq4.cu) >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
  kernels=$(grep -c 'Compiling entry function' "$out/log")
  spilling=$(grep 'bytes spill stores' "$out/log" | grep -vc ' 0 bytes spill stores' || true)
  cuobjdump -sass "$out/tcq4.cubin" | grep -oE '\bIMMA[.0-9A-Z]*' | sort | uniq -c | awk '{printf "%s%s x %s", sep, $2, $1; sep = ", "}' >"$out/mma" || true
  echo "sm_$arch: $kernels kernels, $spilling spill; $(cat "$out/mma")"
  wanted=no
  [[ $arch -ge 90 ]] || wanted=yes
  found=no
  ! grep -q 'S4' "$out/mma" || found=yes
  if [[ $spilling != 0 || $found != "$wanted" ]]; then
    echo "sm_$arch: INT4 instructions wanted: $wanted, found: $found; spilling kernels: $spilling" >&2
    failed=1
  fi
done
exit $failed
