#!/usr/bin/env bash
# Runs the workflow on a Slurm of this one machine, as root: Debian's slurmctld, slurmd and munge are started in a folder of their own and stopped at the
# end. One model is converted in two parts three ways: in one process, by workflow/slurm_array.sh with a task that is killed on the way, and, where
# snakemake with its Slurm plugin is on the path, by workflow/Snakefile. All results must be the same bytes.
#
#   apt-get install slurmctld slurmd slurm-client munge
#   TCQ4=target/release/tcq4 workflow/try_slurm.sh
set -euo pipefail
cd "$(dirname "$0")/.."
tcq4=$(realpath "${TCQ4:-target/release/tcq4}")
for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || { echo "skipped: no $program" >&2; exit 0; }
done
[[ $(id -u) -eq 0 ]] || { echo "skipped: slurmd wants root" >&2; exit 0; }

work=$(mktemp -d)
chmod 755 "$work"
started=() linked=
stop() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    [[ -z $linked ]] || rm -f "$linked"
    [[ -n ${KEEP:-} ]] && echo "kept: $work" || rm -rf "$work"
}
trap stop EXIT

# A munge of its own: key, socket and log in the folder.
mkdir -p "$work/munge" "$work/state" "$work/spool" && chmod 700 "$work/munge"
head -c 1024 /dev/urandom >"$work/munge/key" && chmod 600 "$work/munge/key"
chmod 755 "$work/munge"
munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
    --log-file="$work/munge/log" --seed-file="$work/munge/seed" --num-threads=2 >"$work/munged.out" 2>&1 &
started+=($!)

cores=$(nproc) memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
cat >"$work/slurm.conf" <<CONF
ClusterName=trial
SlurmctldHost=$(hostname -s)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
SlurmctldPort=27817
SlurmdPort=27818
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
MinJobAge=600
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=$(hostname -s) CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES:4
CONF
export SLURM_CONF=$work/slurm.conf
# Snakemake hands its jobs no variables of Slurm: they look where a cluster has its configuration.
if [[ ! -e /etc/slurm/slurm.conf ]]; then
    mkdir -p /etc/slurm
    ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
    linked=/etc/slurm/slurm.conf
fi
slurmctld -D -f "$SLURM_CONF" >"$work/slurmctld.out" 2>&1 &
started+=($!)
slurmd -D -f "$SLURM_CONF" >"$work/slurmd.out" 2>&1 &
started+=($!)
for _ in $(seq 60); do [[ $(sinfo -h -o %t 2>/dev/null) == idle* ]] && break; sleep 1; done
sinfo

model=$(realpath "${MODEL:-fixtures/models/tiny-llama-f16.gguf}") text=$(realpath fixtures/text/calibration.txt)
samples=${SAMPLES:-8} ctx=${CTX:-128}
echo "== one process"
"$tcq4" calibrate -q -m "$model" -c "$text" -n "$samples" --ctx "$ctx" -o "$work/perms.json" --stats "$work/one.stats.gguf"
(cd "$work" && "$tcq4" quantize -q "$model" one.gguf --stats one.stats.gguf)

# The first try of the first part of each step is killed, as the system does when memory runs out.
cat >"$work/flaky" <<FLAKY
#!/bin/sh
case "\$*" in *"--shard 1/2"*)
    if mkdir "$work/killed-\$1" 2>/dev/null; then
        "$tcq4" "\$@" & pid=\$!
        sleep 0.02; kill -KILL \$pid; wait \$pid; exit \$?
    fi;;
esac
exec "$tcq4" "\$@"
FLAKY
chmod +x "$work/flaky"

finished() { # JOB
    local state
    for _ in $(seq 600); do
        state=$(scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | head -1)
        case $state in
            COMPLETED) return 0 ;;
            FAILED | CANCELLED | TIMEOUT | NODE_FAIL | OUT_OF_MEMORY) echo "job $1: $state" >&2; return 1 ;;
        esac
        [[ $(scontrol show job "$1") == *DependencyNeverSatisfied* ]] && { echo "job $1: a job before it failed" >&2; return 1; }
        sleep 1
    done
    return 1
}

echo "== job arrays, two parts, one of each step killed at its first try"
# The statistics are named alike, because a converted file says which it was made with.
mkdir "$work/array"
last=$(cd "$work/array" && TCQ4=$work/flaky SAMPLES=$samples CTX=$ctx "$OLDPWD/workflow/slurm_array.sh" "$model" "$text" one 2)
finished "$last" || { tail -n 5 "$work"/array/*.log; exit 1; }
ls -d "$work"/killed-*
cmp "$work/one.stats.gguf" "$work/array/one.stats.gguf"
cmp "$work/one.gguf" "$work/array/one"
echo "the same bytes: $(sha256sum <"$work/array/one")"

if command -v snakemake >/dev/null && snakemake --help 2>/dev/null | grep -q -- --slurm-status-command; then
    echo "== snakemake on Slurm, two parts, one of each step killed at its first try"
    rm -rf "$work"/killed-*
    mkdir -p "$work/snake" "$work/results"
    cp "$work/one.stats.gguf" "$work/results/one.stats.gguf"
    (cd "$work" && "$tcq4" quantize -q "$model" results/one.gguf --stats results/one.stats.gguf)
    cat >"$work/config.yaml" <<CONFIG
models: {one: $model}
calibration: [$text]
samples: $samples
ctx: $ctx
shards: 2
quantize: ""
eval: -d $(realpath fixtures/text/evaluation.txt) --ctx 128 --chunks 4
output: results
tcq4: $work/flaky
CONFIG
    # This trial keeps no accounts of jobs, so squeue has to tell their states.
    snakemake -s workflow/Snakefile --configfile "$work/config.yaml" -d "$work/snake" --workflow-profile workflow/profiles/slurm \
        --default-resources mem_mb=500 runtime=10 slurm_partition=main --slurm-no-account --slurm-status-command squeue \
        --slurm-init-seconds-before-status-checks 2 --seconds-between-status-checks 3 >"$work/snakemake.log" 2>&1 ||
        { tail -n 60 "$work/snakemake.log"; exit 1; }
    grep -E "Trying to restart|steps .* done" "$work/snakemake.log" || true
    ls -d "$work"/killed-*
    cmp "$work/results/one.gguf" "$work/snake/results/one.gguf"
    echo "the same bytes: $(sha256sum <"$work/snake/results/one.gguf")"
fi
