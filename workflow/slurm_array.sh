#!/bin/sh
# Converts one model in N parts with plain Slurm job arrays: workflow/slurm_array.sh MODEL TEXT OUT N [OPTIONS OF QUANTIZE]
# Run it where sbatch is; the nodes share the folder. Tasks whose node fails are requeued by Slurm, those that fail or are killed try again by
# themselves; the result stays the same. It prints the number of the last job.
set -eu
[ $# -ge 4 ] || { echo "usage: $0 MODEL TEXT OUT N [OPTIONS OF QUANTIZE]" >&2; exit 2; }
model=$1 text=$2 out=$3 n=$4
shift 4
tcq4="${TCQ4:-tcq4}" samples=${SAMPLES:-128} ctx=${CTX:-512} threads=${THREADS:-1} tries=${TRIES:-3}

submit() { # NAME ARRAY AFTER COMMAND
    sbatch --parsable --job-name="$1" --requeue --cpus-per-task="$threads" --output="$out.$1.%a.log" --open-mode=append \
        ${2:+--array="$2"} ${3:+--dependency=afterok:"$3"} \
        --wrap="for try in \$(seq $tries); do $4 && exit 0; done; exit 1"
}
files() { seq -f "$1%.0f" -s ' ' "$n"; }

# Array tasks are numbered from 1, as parts are.
part='$SLURM_ARRAY_TASK_ID'
calibrate=$(submit calibrate "1-$n" "" \
    "$tcq4 calibrate -q -t $threads -m $model -c $text -n $samples --ctx $ctx --shard $part/$n --stats $out.stats.$part --force")
statistics=$(submit statistics "" "$calibrate" "$tcq4 merge -q $(files "$out.stats.") -o $out.stats.gguf --force")
quantize=$(submit quantize "1-$n" "$statistics" \
    "$tcq4 quantize -q -t $threads $model $out.part.$part --stats $out.stats.gguf $* --shard $part/$n --force")
submit merge "" "$quantize" \
    "$tcq4 merge -q $(files "$out.part.") -o $out --force && $tcq4 verify -q $out && rm -f $(files "$out.part.") $(files "$out.stats.")"
