#!/usr/bin/env bash
# Builds llama.cpp's programs with ggml-patches/ applied and checks what they do with TCQ4_K32 on the fixture model: perplexity with INT8 activations
# beside that of the dequantised copy, INT4 activations beside `tcq4 eval --simulate`, the bytes of `llama-quantize`, hostile permutations, llama.cpp's
# own tests of the type. Then ggml-patches/tests/check_models.cpp compares logits on the fixture model and variants of it: adapters, experts, several
# models and sequences, ways to load, tied embeddings, marks of activations; and files that must be refused. Ends with a line of counts; fails if a
# check fails.
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
bin=$(CMAKE_ARGS="-DLLAMA_BUILD_TESTS=ON ${CMAKE_ARGS:-}" scripts/build_patched_llama_cpp.sh "$tree" llama-perplexity llama-quantize llama-gguf-split test-quantize-fns test-backend-ops)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

verdict() { # NAME 0|1
  if [[ $2 == 0 ]]; then passed=$((passed + 1)); echo "ok: $1"; else failed=$((failed + 1)); echo "FAILED: $1"; fi
}

# llama.cpp logs in a thread of its own, whose last lines the end of the program sometimes cuts off: what looks for one runs the program until it is
# seen, 20 times at most.

native() { # FILE: perplexity by the patched llama-perplexity
  for _ in {1..20}; do
    "$bin/llama-perplexity" -m "$1" -f "$text" -c "$ctx" --chunks "$chunks" -t 2 >"$work/log" 2>&1 || break
    ! sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$work/log" | grep . || return 0
  done
  tail -n 20 "$work/log" >&2
  return 1
}

simulated() { # FILE PATH: perplexity by tcq4
  "$tcq4" --json eval "$1" -f "$text" --ctx "$ctx" --chunks "$chunks" --simulate "$2" | python3 -c 'import json, sys; print(json.load(sys.stdin)["perplexity"])'
}

# Whether a command fails, not by a signal, and says why in words that match.
refused() { # WORDS COMMAND...
  local words=$1 code
  shift
  for _ in {1..20}; do
    "$@" >"$work/log" 2>&1 && code=0 || code=$?
    [[ $code -gt 0 && $code -lt 128 ]] || return 1
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
near "INT4 per 32, native and simulated"  "$(GGML_TCQ4_ACT=int4-g32  native "$work/out.gguf")" "$(simulated "$work/out.gguf" a4-g32)"  1
near "INT4 per 256, native and simulated" "$(GGML_TCQ4_ACT=int4-g256 native "$work/out.gguf")" "$(simulated "$work/out.gguf" a4-g256)" 1

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
    data[found.start() + 5:found.start() + 10] = b"blk.x"
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

# --- logits, always of the fixture model

fixture=fixtures/models/tiny-llama-f16.gguf
libraries=$(cd "$bin" && pwd)
"${CXX:-c++}" -O1 -std=c++17 -I "$tree/include" -I "$tree/ggml/include" ggml-patches/tests/check_models.cpp -o "$work/check_models" \
  -L "$libraries" -Wl,-rpath,"$libraries" -lllama -lggml -lggml-base
make_gguf() { python3 ggml-patches/tests/make_gguf.py "$@"; }

models() { # NAME ARGUMENTS OF check_models...
  local name=$1 told
  shift
  # what it prints on stderr is shown if it fails
  if told=$("$work/check_models" "$@" 2>"$work/log"); then
    verdict "$name${told:+: ${told//$'\n'/; }}" 0
  else
    verdict "$name: $told; exit code $?" 1
    tail -n 20 "$work/log"
  fi
}

"$tcq4" --quiet convert "$fixture" -o "$work/tiny.gguf" -n 16
"$tcq4" --quiet dequantize "$work/tiny.gguf" "$work/tiny-back.gguf"
make_gguf lora "$fixture" "$work/lora.gguf"
models "an adapter on TCQ4_K32 and on the dequantised copy" near 2e-4 "$work/tiny.gguf" "$work/tiny-back.gguf" "$work/lora.gguf"

make_gguf moe "$fixture" "$work/moe-f16.gguf"
"$tcq4" --quiet convert "$work/moe-f16.gguf" -o "$work/moe.gguf" -n 8
"$tcq4" --quiet dequantize "$work/moe.gguf" "$work/moe-back.gguf"
near "experts and the dequantised copy" "$(native "$work/moe.gguf")" "$(native "$work/moe-back.gguf")" 0.5
models "experts and the dequantised copy" near 2e-4 "$work/moe.gguf" "$work/moe-back.gguf"

"$tcq4" --quiet convert "$fixture" -o "$work/tied.gguf" -n 2 --embedding-type tcq4_k32
"$tcq4" --quiet dequantize "$work/tied.gguf" "$work/tied-back.gguf"
models "a tied embedding of the type and the dequantised copy" near 2e-4 "$work/tied.gguf" "$work/tied-back.gguf"

"$tcq4" --quiet convert "$fixture" -o "$work/other.gguf" -n 2 --order rrs
models "two models in turns" turns "$work/tiny.gguf" "$work/other.gguf"
# The products of one sequence do not depend on the others; but routers are F32, where llama.cpp's do, and INT8 codes then differ here and there.
models "sequences in one batch and alone" batch 1e-6 "$work/tiny.gguf"
models "sequences in one batch and alone, with experts" batch 1e-4 "$work/moe.gguf"

"$bin/llama-gguf-split" --split --split-max-tensors 10 "$work/tiny.gguf" "$work/split" >"$work/log" 2>&1 || tail -n 5 "$work/log"
models "ways to load" load "$work/tiny.gguf" "$work/split-00001-of-00004.gguf"

for change in reorder-off no-perms mark-int8 mark-int4 mark-k mark-kv; do
  make_gguf $change "$work/tiny.gguf" "$work/$change.gguf"
done
models "tcq4.reorder.enabled = false is as no permutations" same "$work/reorder-off.gguf" "$work/no-perms.gguf"
models "and not as all of them" differ "$work/reorder-off.gguf" "$work/tiny.gguf"

models "marks do nothing with INT8 activations" same "$work/mark-int8.gguf" "$work/tiny.gguf"
export GGML_TCQ4_ACT=int4-g32
models "tensors marked for INT8 have it" near 2e-4 "$work/mark-int8.gguf" "$work/tiny-back.gguf"
models "and others INT4" differ "$work/mark-int8.gguf" "$work/tiny.gguf"
models "an input is rounded anew for a marked tensor" differ "$work/mark-k.gguf" "$work/tiny.gguf"
models "and for the next one without a mark" differ "$work/mark-k.gguf" "$work/mark-kv.gguf"
models "saving keeps permutations and marks" save "$work/mark-k.gguf" "$work/saved.gguf"
models "marks for INT4 leave the path to the user" same "$work/mark-int4.gguf" "$work/tiny.gguf"
GGML_TCQ4_IGNORE_MARKS=1 models "GGML_TCQ4_IGNORE_MARKS" same "$work/mark-int8.gguf" "$work/tiny.gguf"
"$tcq4" --quiet convert "$fixture" -o "$work/aware.gguf" -n 16 --activations int4-group32 --act-aware
near "INT4 per 32 with marks, native and simulated" "$(native "$work/aware.gguf")" "$(simulated "$work/aware.gguf" a4-g32)" 1
make_gguf no-marks "$work/aware.gguf" "$work/unmarked.gguf"
models "these marks change something" differ "$work/aware.gguf" "$work/unmarked.gguf"
unset GGML_TCQ4_ACT

hostile() { # WORDS CHANGE...: changes after which the model must be refused with such words
  local words=$1 change files=()
  shift
  for change in "$@"; do
    make_gguf "$change" "$work/tiny.gguf" "$work/hostile-$change.gguf"
    files+=("$work/hostile-$change.gguf")
  done
  models "refused: $1${2:+ to ${*: -1}}" refuse "$words" "${files[@]}"
}
hostile 'the permutation of .blk\.0\.ffn_down\.weight. ' perm-short perm-twice perm-large perm-negative perm-empty
hostile 'is not an array of 32-bit integers' perm-unsigned perm-floats perm-scalar
hostile 'a tensor that this model does not have' perm-of-nothing mark-of-nothing
hostile 'only those of type tcq4_k32 have it' perm-of-norm mark-of-norm
hostile 'tcq4\.version is 2' version
hostile 'tcq4\.reorder\.enabled' reorder-text
hostile 'is no path of activations|is not a string' mark-unknown mark-number marks-unknown
hostile 'rows, not a multiple of 8' rows
hostile 'elements per row, not a multiple' columns
hostile 'may cause overflow' huge
hostile 'not within the file bounds' truncated
hostile 'invalid data' scale
# shellcheck disable=SC2046
hostile 'ggml type' $(seq -f 'type-%.0f' 43 79)

echo "$passed passed, $failed failed"
[[ $failed == 0 ]]
