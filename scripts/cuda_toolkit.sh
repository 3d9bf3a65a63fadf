# To be sourced from the repository root: makes sure of nvcc and cuobjdump. Sets `include`, the options that nvcc needs for its own headers.
# Both are taken from the PATH; without them the toolkit's PyPI packages go to target/cuda-toolkit (about 1 GB).
include=()
if ! command -v nvcc >/dev/null || ! command -v cuobjdump >/dev/null; then
  toolkit=$PWD/target/cuda-toolkit
  if [[ ! -f $toolkit/.done ]]; then
    python3 -m venv "$toolkit"
    "$toolkit/bin/pip" install -q nvidia-cuda-{nvcc,runtime,crt,cccl,cuobjdump,nvdisasm} nvidia-nvvm nvidia-cublas
    touch "$toolkit/.done"
  fi
  nvcc=$(find "$toolkit" -type f -name nvcc -path '*bin*' | head -n 1)
  PATH=${nvcc%/*}:$PATH
  include=(-I "${nvcc%/bin/nvcc}/include" -I "${nvcc%/bin/nvcc}/include/cccl")
fi
