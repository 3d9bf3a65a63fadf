# To be sourced from the repository root: makes sure of nvcc and cuobjdump, or fails. Sets `include`, the options that nvcc needs for its own headers.
# Both are taken from the PATH; without them the toolkit's PyPI packages go to target/cuda-toolkit (about 1 GB), in the versions that
# benches/record/sass.tsv was made with.
include=()
if ! command -v nvcc >/dev/null || ! command -v cuobjdump >/dev/null; then
  toolkit=$PWD/target/cuda-toolkit
  if [[ ! -f $toolkit/.done ]]; then
    python3 -m venv "$toolkit" &&
      "$toolkit/bin/pip" install -q nvidia-{nvvm,cuda-nvcc,cuda-runtime,cuda-crt,cuda-cuobjdump,cuda-nvdisasm}==13.5.37 nvidia-cuda-cccl==13.3.5.0.6 nvidia-cublas==13.10.0.20 &&
      touch "$toolkit/.done" || return 1
  fi
  nvcc=$(find "$toolkit" -type f -name nvcc -path '*bin*' | head -n 1)
  PATH=${nvcc%/*}:$PATH
  include=(-I "${nvcc%/bin/nvcc}/include" -I "${nvcc%/bin/nvcc}/include/cccl")
fi
