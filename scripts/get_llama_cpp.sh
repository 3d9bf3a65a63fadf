#!/usr/bin/env bash
# Unpacks the llama.cpp source tree that the benchmarks compare with, and prints where it is.
#
# It is the tree vendored in the PyPI source package of llama-cpp-python 0.3.36 (MIT), so no git is needed.
# Needs python3 with venv and pip; with --build also cmake and a C++ compiler (ninja is used where it is installed).
#
# usage: get_llama_cpp.sh [--build] [DIR]     default: ${XDG_CACHE_HOME:-~/.cache}/tcq4-llama.cpp
#   --build   build llama-quantize, llama-imatrix, llama-perplexity, llama-bench and llama-gguf-split for this CPU into DIR/build/bin
# Environment: LLAMA_CPP_PYTHON_VERSION picks another version, JOBS the number of compilers at work (default: all cores).
set -euo pipefail

version=${LLAMA_CPP_PYTHON_VERSION:-0.3.36}
tools=(llama-quantize llama-imatrix llama-perplexity llama-bench llama-gguf-split)
build=
if [[ ${1:-} == --build ]]; then
  build=yes
  shift
fi
tree=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/tcq4-llama.cpp}

unpack() {
  local temp=$1
  python3 -m venv "$temp/venv"
  # pip asks a source package for its metadata even when it only downloads it: its build backend has to be there.
  "$temp/venv/bin/pip" install --quiet --disable-pip-version-check scikit-build-core
  "$temp/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary llama-cpp-python \
    --dest "$temp" "llama-cpp-python==$version"
  mkdir "$temp/tree"
  tar -xzf "$temp"/llama_cpp_python-"$version".tar.gz -C "$temp/tree" --strip-components=3 "llama_cpp_python-$version/vendor/llama.cpp"
  mkdir -p "$tree"
  cp -R "$temp/tree/." "$tree"
}

build_tools() {
  local generator=()
  if command -v ninja >/dev/null && [[ ! -f $tree/build/CMakeCache.txt ]]; then
    generator=(-G Ninja)
  fi
  # No AMX: see .cargo/config.toml.
  cmake -S "$tree" -B "$tree/build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__ \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF >&2
  cmake --build "$tree/build" --config Release --parallel "${JOBS:-$(nproc)}" --target "${tools[@]}" >&2
}

if [[ ! -f $tree/CMakeLists.txt ]]; then
  temp=$(mktemp -d)
  trap 'rm -rf "$temp"' EXIT
  unpack "$temp"
fi
if [[ -n $build ]]; then
  build_tools
fi
printf '%s\n' "$tree"
