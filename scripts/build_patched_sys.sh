#!/usr/bin/env bash
# Builds tcq4 on a llama.cpp that runs TCQ4_K32 as it is: copies the crate llama-cpp-sys-2 to target/patched/, applies ggml-patches/ to the
# llama.cpp in it, and builds with `cargo --config`. The stock build in target/ and Cargo.lock stay as they are.
#
# usage: build_patched_sys.sh [--copy-only] [CARGO ARGUMENTS]     default: build --release
#   --copy-only   make the patched copy and print the cargo options that use it (from this folder)
set -euo pipefail
cd "$(dirname "$0")/.."
copy=target/patched/llama-cpp-sys-2
only=
if [[ ${1:-} == --copy-only ]]; then
  only=yes
  shift
fi
[[ $# -gt 0 ]] || set -- build --release

crate=$(cargo metadata --format-version 1 --locked | tr ',' '\n' | sed -n 's|^"manifest_path":"\(.*/llama-cpp-sys-2-[0-9][^/]*\)/Cargo.toml".*|\1|p' | head -n 1)
[[ -n $crate ]] || { echo "build_patched_sys: cargo does not know where llama-cpp-sys-2 is" >&2; exit 1; }

# A copy of another version, or with other patches, is made anew.
version=${crate##*/}
if [[ ! -f $copy/.version || $(cat "$copy/.version") != "$version" ]] || ! ggml-patches/apply.sh "$copy/llama.cpp"; then
  rm -rf "$copy"
  mkdir -p "$copy"
  cp -R "$crate/." "$copy"
  ggml-patches/apply.sh "$copy/llama.cpp"
  echo "$version" >"$copy/.version"
fi

# cargo notes the other source of the crate in Cargo.lock, so it works in a folder with links to everything here and a lock file of its own.
package=target/patched/package
rm -rf "$package"
mkdir -p "$package"
for entry in .[!.]* *; do
  case $entry in
    .git | target | Cargo.lock) ;;
    *) ln -s "$PWD/$entry" "$package/$entry" ;;
  esac
done
cp Cargo.lock "$package"

options=(--manifest-path "$package/Cargo.toml" --config "patch.crates-io.llama-cpp-sys-2.path='$PWD/$copy'" --target-dir target/patched/build)
if [[ -n $only ]]; then
  printf '%q ' "${options[@]}"
  echo
  exit 0
fi
command=$1
shift
cargo "$command" "${options[@]}" "$@"
