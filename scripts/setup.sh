#!/usr/bin/env bash
# Installs what building tcq4 needs besides Rust and a C++ compiler: cmake and libclang. Does nothing where both are there already.
# With --tests it installs what only tests want instead: Chromium, which drives the HTML report, a cross-compiler and an emulator of ARM, and numpy, an
# independent reader and calculator, with NVRTC, which compiles the CUDA kernels, and snakemake, which drives conversions in parts, beside it. Where it cannot,
# those tests say that they were skipped. It prints the python that has numpy, if there is one.
set -euo pipefail

# libclang-cpp is another library, which bindgen cannot use.
have_libclang() {
  [[ -n ${LIBCLANG_PATH:-} ]] && return 0
  ldconfig -p 2>/dev/null | grep -qE 'libclang(-[0-9.]+)?\.so' && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang[-.][0-9s]*' >/dev/null || compgen -G '/usr/lib*/libclang.so*' >/dev/null || compgen -G '/opt/homebrew/opt/llvm/lib/libclang.*' >/dev/null
}

# Installs Debian packages; says what is skipped without them where it cannot.
install_debs() { # SKIPPED PACKAGE...
  local skipped=$1 root=()
  shift
  [[ $(id -u) -eq 0 ]] || root=(sudo -n)
  echo "setup: installing $*" >&2
  if ! command -v apt-get >/dev/null || ! { "${root[@]}" apt-get update -qq && DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq "$@"; } >/dev/null 2>&1; then
    echo "setup: no $*; $skipped will be skipped" >&2
  fi
}

install_browser() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" >/dev/null && return 0
  done
  install_debs "the tests of the HTML report in a browser" chromium
}

install_arm() {
  command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null && return 0
  install_debs "the tests of the kernels for ARM" g++-aarch64-linux-gnu qemu-user-static
}

install_numpy() {
  local folder=${XDG_CACHE_HOME:-$HOME/.cache}/tcq4-python
  if ! "$folder/bin/python" -c 'import numpy' 2>/dev/null; then
    echo "setup: installing numpy into $folder" >&2
    if ! { python3 -m venv "$folder" && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check 'numpy>=1.26'; } >/dev/null 2>&1; then
      echo "setup: no numpy; the tests that compare with it will be skipped" >&2
      return 0
    fi
  fi
  if [[ ! -x $folder/bin/snakemake ]]; then
    echo "setup: installing snakemake into $folder" >&2
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check 'snakemake>=9' >/dev/null 2>&1 ||
      echo "setup: no snakemake; the test of the workflow will be skipped" >&2
  fi
  if ! compgen -G "$folder/lib/python3*/site-packages/nvidia/*/lib/libnvrtc.so*" >/dev/null; then
    # a driver takes what NVRTC of its own CUDA, or of an older one, makes
    local nvrtc='nvidia-cuda-nvrtc>=13'
    ! nvidia-smi 2>/dev/null | grep 'CUDA Version: 12' >/dev/null || nvrtc=nvidia-cuda-nvrtc-cu12
    echo "setup: installing NVRTC into $folder" >&2
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$nvrtc" >/dev/null 2>&1 ||
      echo "setup: no NVRTC; the tests that compile CUDA kernels with it will be skipped" >&2
  fi
  echo "$folder/bin/python"
}

if [[ ${1:-} == --tests ]]; then
  install_browser
  install_arm
  install_numpy
  exit 0
fi

command -v cargo >/dev/null || { echo "setup: Rust is missing; see https://rustup.rs" >&2; exit 1; }
command -v c++ >/dev/null || { echo "setup: a C++ compiler is missing (Debian: apt install g++)" >&2; exit 1; }
missing=()
command -v cmake >/dev/null || missing+=(cmake)
have_libclang || missing+=(libclang)
[[ ${#missing[@]} -eq 0 ]] && exit 0

echo "setup: installing ${missing[*]}" >&2
root=()
[[ $(id -u) -eq 0 ]] || root=(sudo)
if command -v apt-get >/dev/null; then
  "${root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq "${missing[@]/libclang/libclang-dev}" >/dev/null
elif command -v dnf >/dev/null; then
  "${root[@]}" dnf install -y -q "${missing[@]/libclang/clang-devel}"
elif command -v pacman >/dev/null; then
  "${root[@]}" pacman -S --noconfirm --needed "${missing[@]/libclang/clang}"
elif command -v brew >/dev/null; then
  brew install -q "${missing[@]/libclang/llvm}"
else
  echo "setup: no known package manager; install cmake and libclang by hand" >&2
  exit 1
fi
