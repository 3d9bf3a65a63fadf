#!/usr/bin/env bash
# Builds llama.cpp's programs with ggml-patches/ applied and checks what they do with TCQ4_K32 on the fixture model: perplexity with INT8 activations
# beside that of the dequantised copy, INT4 activations beside `tcq4 eval --simulate`, the bytes of `llama-quantize`, hostile permutations, llama.cpp's
# own tests of the type. Ends with a line of counts; fails if a check fails.
#
# Environment: MODEL, TEXT, CTX and CHUNKS choose another model and text; TCQ4 is the program (default: built); PATCHED is the tree to build in
# (default: target/patched/llama.cpp); STOCK names a folder with an unpatched llama-perplexity, which has to refuse the file.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${MODEL:-fixtures/models/tiny-llama-f16.gguf}
text=${TEXT:-fixtures/text/evaluation.txt}
ctx=${CTX:-256}
chunks=${CHUNKS:-24}
tcq4=${TCQ4:-}
if [[ -z $tcq4 ]]; then
  cargo build --release --quiet
  tcq4=${CARGO_TARGET_DIR:-target}/release/tcq4
fi
tree=${PATCHED:-target/patched/llama.cpp}
bin=$(CMAKE_ARGS="-DLLAMA_BUILD_TESTS=ON ${CMAKE_ARGS:-}" scripts/build_patched_llama_cpp.sh "$tree" llama-perplexity llama-quantize test-quantize-fns test-backend-ops)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

verdict() { # NAME 0|1
  if [[ $2 == 0 ]]; then passed=$((passed + 1)); echo "ok: $1"; else failed=$((failed + 1)); echo "FAILED: $1"; fi
}

native() { # FILE: perplexity by the patched llama-perplexity
  "$bin/llama-perplexity" -m "$1" -f "$text" -c "$ctx" --chunks "$chunks" -t 2 >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; return 1; }
  sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$work/log"
}

simulated() { # PATH: perplexity by tcq4
  "$tcq4" --json eval "$work/out.gguf" -f "$text" --ctx "$ctx" --chunks "$chunks" --simulate "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["perplexity"])'
}

# Whether a command fails, and says why in words that match. llama.cpp logs in a thread of its own, whose last lines an early exit often cuts off, so it is
# run until they are seen, 20 times at most.
refused() { # WORDS COMMAND...
  local words=$1
  shift
  for _ in {1..20}; do
    ! "$@" >"$work/log" 2>&1 || return 1
    ! grep -Eq "$words" "$work/log" || return 0
  done
  return 1
}

near() { # NAME FOUND EXPECTED PERCENT
  local told
  if told=$(python3 -c 'import sys; a, b, most = map(float, sys.argv[1:]); print(f"{a:.4f} and {b:.4f}, {(a/b - 1)*100:+.2f} %"); sys.exit(abs(a/b - 1)*100 > most)' "$2" "$3" "$4"); then
    verdict "$1: $told" 0
  else
    verdict "$1: $told, more than $4 %" 1
  fi
}

"$tcq4" --quiet convert "$model" -o "$work/out.gguf" --stats "$work/stats.gguf" -n 16
"$tcq4" --quiet dequantize "$work/out.gguf" "$work/back.gguf"
near "INT8 activations and the dequantised copy" "$(native "$work/out.gguf")" "$(native "$work/back.gguf")" 0.5
near "INT4 per 32, native and simulated"  "$(GGML_TCQ4_ACT=int4-g32  native "$work/out.gguf")" "$(simulated a4-g32)"  1
near "INT4 per 256, native and simulated" "$(GGML_TCQ4_ACT=int4-g256 native "$work/out.gguf")" "$(simulated a4-g256)" 1

"$tcq4" --quiet perms -m "$model" --stats "$work/stats.gguf" -o "$work/perms.json"
"$tcq4" --quiet quantize "$model" "$work/ours.gguf" --perms "$work/perms.json" --encoder parity
"$bin/llama-quantize" --tcq4-perms "$work/perms.json" "$model" "$work/theirs.gguf" TCQ4_K32 2 >"$work/log" 2>&1 || tail -n 20 "$work/log" >&2
if "$tcq4" --json diff "$work/ours.gguf" "$work/theirs.gguf" | python3 -c 'import json, sys; d = json.load(sys.stdin); sys.exit(bool(d["tensors"]))'; then
  verdict "llama-quantize --tcq4-perms writes the bytes of tcq4 quantize" 0
else
  verdict "llama-quantize --tcq4-perms writes the bytes of tcq4 quantize" 1
fi
sed 's/"version": *1/"version": 2/' "$work/perms.json" >"$work/wrong.json"
refused version "$bin/llama-quantize" --tcq4-perms "$work/wrong.json" "$model" "$work/x.gguf" TCQ4_K32 2 && code=0 || code=1
verdict "a perms.json of another version is an error" $code

# An entry twice, one too large, and a key of a tensor that is not there: each is refused with a message that names the tensor.
for way in twice large name; do
  python3 - "$work/out.gguf" "$work/hostile.gguf" "$way" <<'P'
import re, struct, sys
data, way = bytearray(open(sys.argv[1], "rb").read()), sys.argv[3]
found = re.search(rb"tcq4\.blk\.0\.[a-z_]+\.weight\.perm", data)
at = found.end() + 4 + 4 + 8  # types of value and of entries, number of entries
first, second = struct.unpack_from("<ii", data, at)
if way == "name":
    data[found.start() + 5:found.start() + 10] = b"blk.9"
else:
    struct.pack_into("<i", data, at, second if way == "twice" else 1 << 30)
open(sys.argv[2], "wb").write(data)
P
  refused 'permutation|does not have' "$bin/llama-perplexity" -m "$work/hostile.gguf" -f "$text" -c "$ctx" --chunks 1 -t 2 && code=0 || code=1
  verdict "a hostile permutation ($way) is refused with a message" $code
done

if [[ -n ${STOCK:-} ]]; then
  refused 'ggml type 80' "$STOCK/llama-perplexity" -m "$work/out.gguf" -f "$text" -c "$ctx" --chunks 1 && code=0 || code=1
  verdict "an unpatched llama.cpp refuses the file with a message" $code
else
  echo "skipped: an unpatched llama.cpp refuses the file (STOCK names none)"
fi

"$bin/test-quantize-fns" >"$work/log" 2>&1 && code=0 || { code=1; tail -n 5 "$work/log"; }
verdict "test-quantize-fns" $code
for op in MUL_MAT MUL_MAT_ID GET_ROWS; do
  "$bin/test-backend-ops" test -b CPU -o "$op" -p tcq4 >"$work/log" 2>&1 && grep -q 'tests passed' "$work/log" && ! grep -q ' 0/0 tests' "$work/log" && code=0 || { code=1; tail -n 5 "$work/log"; }
  verdict "test-backend-ops $op: $(grep -o '[0-9/]* tests passed' "$work/log")" $code
done

echo "$passed passed, $failed failed"
[[ $failed == 0 ]]
