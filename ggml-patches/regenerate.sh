#!/usr/bin/env bash
# Writes the series anew from the commits of a tree that `apply.sh --commits` made: one patch for each commit after the first.
# With --bases NAME=TREE ... it writes LLAMA_CPP_REV instead: the checksums, in each unpatched TREE, of the files that the series changes.
#
# usage: regenerate.sh TREE
#        regenerate.sh --bases NAME=TREE ...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if [[ ${1:-} == --bases ]]; then
  shift
  [[ $# -gt 0 ]] || { echo "regenerate.sh: no trees" >&2; exit 2; }
  {
    echo "# The llama.cpp revisions that the series is made for, told by the checksums of the files that it changes (see regenerate.sh)."
    for base in "$@"; do
      tree=${base#*=}
      echo
      echo "base ${base%%=*}"
      sed -n 's|^--- a/||p' "$here"/[0-9]*.patch | sort -u | while IFS= read -r file; do
        [[ ! -f $tree/$file ]] || (cd "$tree" && sha256sum "$file")
      done
      echo end
    done
  } >"$here/LLAMA_CPP_REV.new"
  mv "$here/LLAMA_CPP_REV.new" "$here/LLAMA_CPP_REV"
  exit 0
fi

[[ $# -eq 1 && -d $1/.git ]] || { echo "usage: regenerate.sh TREE (made by apply.sh --commits)" >&2; exit 2; }
root=$(git -C "$1" rev-list --max-parents=0 HEAD)
rm -f "$here"/[0-9]*.patch
n=0
for commit in $(git -C "$1" rev-list --reverse "$root..HEAD"); do
  n=$((n + 1))
  slug=$(git -C "$1" show -s --format=%s "$commit" | tr 'A-Z' 'a-z' | tr -cs 'a-z0-9_' '-' | sed 's/-$//')
  {
    git -C "$1" show -s --format=%B "$commit" | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
    echo ---
    git -C "$1" diff --no-color --no-ext-diff --full-index "$commit~1" "$commit"
  } >"$here/$(printf '%04d' "$n")-$slug.patch"
done
