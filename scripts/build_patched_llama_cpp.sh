#!/usr/bin/env bash
# Builds llama.cpp's programs with ggml-patches/ applied, so that they run TCQ4_K32 files, and prints the folder they are in.
# The source tree is that of get_llama_cpp.sh, copied: the stock one stays as it is.
#
# usage: build_patched_llama_cpp.sh [DIR [TARGET...]]     default: target/patched/llama.cpp, and the programs that the benchmarks use
# Environment: JOBS is the number of compilers at work (default: all cores), CMAKE_ARGS are further options, -DGGML_CUDA=ON for instance.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=${1:-target/patched/llama.cpp}
[[ $# -eq 0 ]] || shift
targets=("$@")
[[ ${#targets[@]} -gt 0 ]] || targets=(llama-quantize llama-imatrix llama-perplexity llama-bench llama-gguf-split)

stock=$(scripts/get_llama_cpp.sh)
if [[ ! -e $tree || -f $tree/.tcq4-patches ]] && ! ggml-patches/apply.sh "$tree" 2>/dev/null; then
  # not there yet, or with older patches
  rm -rf "$tree"
  mkdir -p "$tree"
  tar -C "$stock" --exclude=./build --exclude=./.git -cf - . | tar -C "$tree" -xf -
fi
ggml-patches/apply.sh "$tree"

generator=() launcher=()
if command -v ninja >/dev/null && [[ ! -f $tree/build/CMakeCache.txt ]]; then
  generator=(-G Ninja)
fi
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
server=OFF
[[ " ${targets[*]} " != *' llama-server '* ]] || server=ON
# No AMX: see .cargo/config.toml.
read -ra more <<<"${CMAKE_ARGS:-}"
cmake -S "$tree" -B "$tree/build" "${generator[@]}" "${launcher[@]}" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
  -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__ \
  -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=$server "${more[@]}" >&2
cmake --build "$tree/build" --config Release --parallel "${JOBS:-$(nproc)}" --target "${targets[@]}" >&2
printf '%s\n' "$tree/build/bin"
