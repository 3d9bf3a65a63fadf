#!/usr/bin/env bash
# Compiles cuda/kernels without a GPU and compares what became of every kernel with benches/record/sass.tsv: registers, shared memory, instructions,
# tensor core instructions. Fails where something does not compile, spills or uses local memory, where INT4 tensor core instructions are missing on
# sm_75 to sm_89 or emulated on others, and where registers or shared memory are not those of the record, if that was made by this version of nvcc.
#
# usage: compile_kernels.sh [--record] [ARCHITECTURE...]     default: 75 80 86 89 90 100 120
#   --record   writes the record anew (for the architectures given) instead of comparing
# nvcc and cuobjdump: see cuda_toolkit.sh. Another version of nvcc may well use other registers, so its figures are not compared, and that is said.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=compare
if [[ ${1:-} == --record ]]; then
  mode=record
  shift
fi
[[ $# -gt 0 ]] || set -- 75 80 86 89 90 100 120
. scripts/cuda_toolkit.sh

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for arch in "$@"; do
  for source in cuda/kernels/*.cu; do
    name=$out/${source##*/}.$arch
    nvcc -std=c++17 -O3 "${include[@]}" -I cuda/include -arch="sm_$arch" -Xptxas -v -cubin -o "$name.cubin" "$source" 2>"$name.log" || { cat "$name.log" >&2; exit 1; }
    cuobjdump -sass "$name.cubin" >"$name.sass"
  done
done
version=$(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
python3 scripts/read_sass.py "$mode" "$version" "$out"
