#!/usr/bin/env bash
# Brings a llama.cpp source tree the type TCQ4_K32: copies files/ and those headers of cuda/include that they include, and applies the series of patches.
# A tree that has them already is left as it is. Needs git (as a patch program: the tree need not be a repository) and sha256sum.
#
# usage: apply.sh [--any-revision] [--commits] TREE
#   --any-revision  try it on a tree that is none of those in LLAMA_CPP_REV
#   --commits       TREE becomes a git repository with a commit for each patch, which regenerate.sh turns back into patches
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
any= commits=
while [[ ${1:-} == --* ]]; do
  case $1 in
    --any-revision) any=yes ;;
    --commits) commits=yes ;;
    *) echo "apply.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
[[ $# -eq 1 ]] || { echo "usage: apply.sh [--any-revision] [--commits] TREE" >&2; exit 2; }
[[ -f $1/ggml/include/ggml.h && -f $1/include/llama.h ]] || { echo "apply.sh: $1 is not a llama.cpp source tree" >&2; exit 1; }
command -v git >/dev/null || { echo "apply.sh: git is missing" >&2; exit 1; }
tree=$(cd "$1" && pwd)
stamp=$tree/.tcq4-patches

# A tree inside of another repository (target/, say) must not be taken for a part of it.
export GIT_CEILING_DIRECTORIES=${tree%/*}
tree_git() { git -C "$tree" "$@"; }

# Source packages come without tools and gguf-py; the patches named *-tools* are for whole trees.
series=()
for patch in "$here"/[0-9]*.patch; do
  [[ $patch == *-tools*.patch && ! -f $tree/tools/quantize/quantize.cpp ]] || series+=("$patch")
done
hash=$(cat "${series[@]}" | sha256sum | cut -d' ' -f1)

copy_files() {
  local file
  while IFS= read -r file; do
    # files of programs and tests that this tree lacks belong to a patch that it does not get
    [[ $file != tools/* && $file != tests/* || -f $tree/${file%/*}/CMakeLists.txt ]] || continue
    mkdir -p "$tree/$(dirname "$file")"
    # an unchanged file keeps its time, so that nothing is compiled in vain
    cmp -s "$here/files/$file" "$tree/$file" || cp "$here/files/$file" "$tree/$file"
  done < <(cd "$here/files" && find . -type f | sed 's|^\./||')
  for file in "$here"/../cuda/include/tcq4_{k32.h,device.cuh,act.cuh,decode.cuh,mul_vec.cuh,mul_mat.cuh}; do
    cmp -s "$file" "$tree/ggml/src/${file##*/}" || cp "$file" "$tree/ggml/src/${file##*/}"
  done
}

if [[ -f $stamp ]]; then
  if [[ $(cat "$stamp") != "$hash" ]]; then
    echo "apply.sh: $tree has another version of these patches; start from a fresh tree" >&2
    exit 1
  fi
  copy_files
  echo "apply.sh: $tree is patched already" >&2
  exit 0
fi

# A tree without the stamp can be patched all the same.
if cat "${series[@]}" | tree_git apply --reverse --check - 2>/dev/null; then
  copy_files
  echo "$hash" >"$stamp"
  echo "apply.sh: $tree is patched already" >&2
  exit 0
fi

# The revision is told by the files that the series changes.
name= known=()
while read -r first second; do
  case $first in
    '' | '#'*) ;;
    base) name=$second; failed=; known+=("$name") ;;
    end) if [[ -z $failed ]]; then found=$name; break; fi ;;
    *) [[ -n $failed ]] || [[ -f $tree/$second && $(sha256sum <"$tree/$second") == "$first  -" ]] || failed=$second ;;
  esac
done <"$here/LLAMA_CPP_REV"
if [[ -z ${found:-} && -z $any ]]; then
  { echo "apply.sh: $tree is none of the revisions that these patches were made for:"; printf '  %s\n' "${known[@]}"
    echo "Use one of them, or try this one with --any-revision."; } >&2
  exit 1
fi

# All or nothing: one stream is checked and written as a whole.
if ! cat "${series[@]}" | tree_git apply --check -; then
  echo "apply.sh: the patches do not fit $tree" >&2
  exit 1
fi
if [[ -n $commits ]]; then
  as=(-c user.name=tcq4 -c user.email=tcq4@localhost -c commit.gpgsign=false)
  [[ -d $tree/.git ]] || { tree_git init -q; tree_git add -Af .; tree_git "${as[@]}" commit -qm base; }
  for patch in "${series[@]}"; do
    tree_git apply --index "$patch"
    sed '/^---$/,$d' "$patch" | tree_git "${as[@]}" commit -qF -
  done
else
  cat "${series[@]}" | tree_git apply -
fi
copy_files
echo "$hash" >"$stamp"
echo "apply.sh: patched $tree (${found:-unknown revision})" >&2
