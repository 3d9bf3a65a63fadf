#!/usr/bin/env bash
# Runs every test: the whole crate with llama.cpp, then the part that builds without it.
# Needs Rust and a C++ compiler; installs cmake and libclang where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
cargo test --release "$@"
cargo test --release --no-default-features "$@"
