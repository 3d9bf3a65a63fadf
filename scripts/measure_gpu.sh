#!/usr/bin/env bash
# Measures everything that needs an NVIDIA GPU, in under 8 minutes, into a folder (default: benches/record/<GPU>-<date>):
#   check.txt             every kernel against the CPU
#   bench.json            speed beside the GPU's own copy and cuBLAS (line by line in bench.json.errors, where time runs out)
#   sanitizer-*.txt       compute-sanitizer's memcheck, racecheck and synccheck, where it is installed
#   quantize.txt          a model encoded on the CPU and on the GPU: same bytes, and the times
#   llama-cpp.txt         llama.cpp's products with Q4_K on the same shapes, where a patched tree with CUDA is built (LLAMA_BIN names its programs)
# Needs the binary (TCQ4, default target/release/tcq4) and NVRTC (TCQ4_NVRTC_DIR, or where the system looks). Each part has its limit of time, and a part
# that fails does not keep the others from running; the script then ends with 1.
set -uo pipefail
# What the caller names is named from where the caller is.
for variable in TCQ4 TCQ4_NVRTC_DIR LLAMA_BIN MODEL; do
  [[ -z ${!variable:-} ]] || export "$variable=$(realpath -m "${!variable}")"
done
out=${1:+$(realpath -m "$1")}
cd "$(dirname "$0")/.."
tcq4=${TCQ4:-target/release/tcq4}
if [[ ! -x $tcq4 ]]; then
  echo "error: $tcq4 is not there" >&2
  echo "hint: cargo build --release --no-default-features, or name the binary with TCQ4" >&2
  exit 2
fi
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
if [[ -z $gpu ]]; then
  echo "error: nvidia-smi lists no GPU" >&2
  echo "hint: run this on a machine with an NVIDIA GPU; \`tcq4 kernels compile\` needs none" >&2
  exit 2
fi
name=$(tr -cs '[:alnum:]\n' '-' <<< "${gpu,,}" | sed 's/^-*//; s/-*$//')
out=${out:-benches/record/$name-$(date +%F)}
mkdir -p "$out"
failed=0

# part SECONDS FILE COMMAND..: what it prints goes to the file, what it says beside to FILE.errors.
part() {
  local limit=$1 file=$out/$2
  shift 2
  echo "== $* > $file"
  timeout "$limit" "$@" > "$file" 2> "$file.errors"
  local status=$?
  if ((status)); then
    echo "   ended with $status: $(tail -n 3 "$file.errors")"
    failed=1
  fi
  [[ -s $file.errors ]] || rm "$file.errors"
}

nvidia-smi > "$out/nvidia-smi.txt" 2>&1
part 30 compile.txt "$tcq4" kernels compile --arch "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)"
part 80 check.txt "$tcq4" kernels check
part 140 bench.json "$tcq4" -v kernels bench --json

if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
  # Slows everything down a hundredfold: one kernel of each kind, and all kinds whose threads wait for each other.
  for tool in memcheck racecheck synccheck; do
    part 45 "sanitizer-$tool.txt" "$sanitizer" --tool "$tool" --error-exitcode 9 "$tcq4" kernels check fwht_f32 gather_f32 round_int8_f32 mul_vec_int8_m1 \
      mul_vec_fused_int8_m4 mul_vec_id_int8 mul_mat_int8 mul_mat_int4 mul_mat_block8 mul_mat_id_int8 encode_default_f32 dequantize_f16 statistics gram \
      sort_experts smooth
  done
else
  echo "== compute-sanitizer is not there: skipped" | tee "$out/sanitizer.txt"
fi

encode() {
  local model=${MODEL:-fixtures/models/tiny-llama-f16.gguf} folder TIMEFORMAT='%R s'
  folder=$(mktemp -d)
  for device in cpu cuda; do
    echo "$model on $device"
    # The time goes to stdout, what the program says stays where it is. Strict: it may not fall back to the CPU.
    { time "$tcq4" quantize "$model" "$folder/$device.gguf" --embedding-type f16 --output-type f16 --device "$device" --strict --quiet 2>&3; } 3>&2 2>&1 || return 1
  done
  cmp "$folder/cpu.gguf" "$folder/cuda.gguf" && echo "same bytes"
  local same=$?
  rm -r "$folder"
  return "$same"
}
export -f encode
export tcq4
part 40 quantize.txt bash -c encode

if [[ -n ${LLAMA_BIN:-} && -x $LLAMA_BIN/test-backend-ops ]]; then
  part 50 llama-cpp.txt "$LLAMA_BIN/test-backend-ops" perf -o MUL_MAT -b CUDA0 -p 'type_a=(q4_K|tcq4).*'
else
  echo "== no test-backend-ops (LLAMA_BIN): no comparison with llama.cpp" | tee "$out/llama-cpp.txt"
fi
echo "results: $out"
exit "$failed"
