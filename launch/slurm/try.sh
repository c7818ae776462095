#!/usr/bin/env bash
# Tries the batch files on a real Slurm: Debian's, which becomes a cluster of two nodes on this one machine, each with a
# network and a host name of its own. Needs root and the checkout's .venv (bash launch/setup.sh test); about ten minutes.
# Nothing of it stays but the packages: try.sh [folder for the cluster's and the runs' files, which is kept]
set -euo pipefail
checkout=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd -- "$checkout"

((EUID == 0)) || { echo "try.sh: needs root, for its two networks" >&2; exit 1; }
[[ -x .venv/bin/horovodrun ]] || { echo "try.sh: no Horovod here; bash launch/setup.sh test" >&2; exit 1; }
if ! type -P slurmctld slurmd munged >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 >/dev/null
fi

if (($#)); then
  mkdir -p "$1" && home=$(cd -- "$1" && pwd -P)
else
  home=$(mktemp -d /tmp/resnet-slurm.XXXXXX)
fi
export SLURM_CONF=$home/slurm.conf TF_CPP_MIN_LOG_LEVEL=3

# --- the cluster -------------------------------------------------------------------------------------------------------

tear_down() {
  local node signal left
  timeout 10 scancel --user=root 2>/dev/null || true
  for signal in TERM TERM KILL; do # slurmd waits for its jobs
    mapfile -t left < <(jobs -pr)
    ((${#left[@]} == 0)) || { kill -"$signal" "${left[@]}" 2>/dev/null && sleep 5; } || true
  done
  for node in node1 node2; do ip netns del "try-$node" 2>/dev/null || true; done
  ip link del try0 2>/dev/null || true
  (($#)) || rm -rf "$home"
}
trap 'tear_down "$@"' EXIT

ip link add try0 type bridge
ip addr add 10.83.0.254/24 dev try0
ip link set try0 up
{
  cat /etc/hosts
  printf '10.83.0.%s\n' "254 $(hostname)" '1 node1' '2 node2'
} >"$home/hosts"

cat >"$SLURM_CONF" <<CONF
ClusterName=try
SlurmctldHost=$(hostname)(10.83.0.254)
SlurmUser=root
AuthInfo=socket=$home/munge.socket,cred_expire=5
StateSaveLocation=$home/state
SlurmctldPidFile=$home/slurmctld.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdSpoolDir=$home/spool-%n
SlurmdPidFile=$home/%n.pid
SlurmdLogFile=$home/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=5,sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
NodeName=node[1-2] NodeAddr=10.83.0.[1-2] CoresPerSocket=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
CONF

mkdir -p "$home/state" /run/munge
[[ -f $home/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$home/munge.key")
munged --foreground --force --key-file="$home/munge.key" --socket="$home/munge.socket" --pid-file="$home/munged.pid" \
  --log-file="$home/munged.log" --seed-file="$home/munged.seed" 2>/dev/null &
until [[ -S $home/munge.socket ]]; do sleep 0.1; done
slurmctld -D -c >/dev/null 2>&1 &
controller=$!

for number in 1 2; do
  node=node$number
  ip netns add "try-$node"
  ip link add "try$number" type veth peer name eth0 netns "try-$node"
  ip link set "try$number" master try0 up
  ip -n "try-$node" addr add "10.83.0.$number/24" dev eth0
  ip -n "try-$node" link set eth0 up
  ip -n "try-$node" link set lo up
  mkdir -p "$home/spool-$node"
  # Not `ip netns exec`, which hides the cgroups that slurmd looks for.
  # shellcheck disable=SC2016  # for the inner shell
  nsenter --net="/run/netns/try-$node" unshare --uts --mount bash -c \
    'mount --bind "$0" /etc/hosts && hostname "$1" && exec slurmd -D -N "$1"' "$home/hosts" "$node" >/dev/null 2>&1 &
done

# --- what is expected ----------------------------------------------------------------------------------------------------

words=(model=tiny data=digits batch=32 steps=400 save_every_steps=50 log_every_steps=1 eval_every_epochs=99 track=off)
two=(--nodes=2 --ntasks=2 --cpus-per-task="$(nproc)" --time=10 --output="$home/%j.log" launch/slurm/several_nodes.sbatch)

say() { printf '%(%H:%M:%S)T %s\n' -1 "$*"; }
die() {
  say "FAILED: $*"
  tail -n 20 "$home"/*.log
  exit 1
}
field() { scontrol show job --oneliner "$1" | grep -oP "\\b$2=\\K\\S+"; } # job, name
within() {                                                               # seconds, command...: until it succeeds
  local end=$((SECONDS + $1))
  until "${@:2}"; do
    ((SECONDS < end)) || die "not within $1 s: ${*:2}"
    sleep 0.5
  done
}
is() { [[ $(field "$1" JobState) == "$2" ]]; } # job, state
at() { grep -qs "\"step\": $2\b" "$1/metrics.jsonl"; } # folder, step: the training has made it
saved() { grep -q '^stopped by a signal; saved step-' "$home/$1.log"; } # job
ended() {                                                                # job, folder, restarts: as it should
  within 240 is "$1" COMPLETED
  [[ $(field "$1" Restarts) == "$3" ]] || die "job $1: restarts $(field "$1" Restarts), not $3"
  as_without_trouble "$2" || die "job $1: other weights than without the trouble"
}
as_without_trouble() { # folder: it has the weights of the first run on two nodes
  .venv/bin/python - "$home/two" "$1" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from resnet.rundir import result
from resnet.training import checkpoint


def weights(out):
    saved = checkpoint.list_checkpoints(Path(out))[-1]
    assert saved.step == 400 and checkpoint.verify(saved) is None and result.read(Path(out))
    reader = tf.train.load_checkpoint(str(saved.path / "weights"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in n}


expected, found = map(weights, sys.argv[1:])
assert expected.keys() == found.keys() and len(found) > 40
assert all(np.array_equal(expected[name], found[name]) for name in expected)
PYTHON
}

ready() { [[ $(sinfo --noheader --format=%T | sort -u) == idle ]]; }

within 60 ready
say "two nodes are there: $(slurmd -V)"

job=$(sbatch --parsable --ntasks=2 --cpus-per-task=1 --time=10 --output="$home/%j.log" launch/slurm/one_node.sbatch \
  "${words[@]}" out="$home/one")
within 240 is "$job" COMPLETED
say "one node, two ranks: done"

job=$(sbatch --parsable "${two[@]}" "${words[@]}" out="$home/two")
ended "$job" "$home/two" 0
[[ $(grep -ohP '"machine": "\K\w+' "$home"/two/logs/rank-*.json | paste -sd,) == node1,node2 ]] || die "not on two nodes"
say "two nodes, a rank on each: done"

job=$(sbatch --parsable "${two[@]}" "${words[@]}" out="$home/warned")
within 120 at "$home/warned" 60
scancel --batch --signal=USR1 "$job" # what --signal=B:USR1@300 does 300 s before the time limit
ended "$job" "$home/warned" 1
saved "$job" || die "job $job: not saved when it was warned"
say "warned of the time limit: saved, requeued, the same weights in the end"

job=$(sbatch --parsable "${two[@]}" "${words[@]}" out="$home/preempted")
within 120 at "$home/preempted" 60
sbatch --partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap='sleep 5' >/dev/null
ended "$job" "$home/preempted" 1
saved "$job" || die "job $job: not saved when it was preempted"
say "preempted by a more important job: saved, requeued, the same weights in the end"

job=$(sbatch --parsable "${two[@]}" "${words[@]}" out="$home/killed" cluster.max_restarts=1)
within 120 at "$home/killed" 60
kill -9 "$(grep -oP '"pid": \K\d+' "$home/killed/logs/rank-1.json")"
ended "$job" "$home/killed" 0
say "a rank on the other node killed: started again in the same allocation, the same weights in the end"

job=$(sbatch --parsable "${two[@]}" "${words[@]}" out="$home/cancelled")
within 120 at "$home/cancelled" 60
scancel "$job"
within 60 is "$job" CANCELLED
within 60 ready
saved "$job" || die "job $job: not saved when it was cancelled"
[[ -z $(squeue --noheader) && $(field "$job" Restarts) == 0 ]] || die "job $job came back"
job=$(sbatch --parsable "${two[@]}" "${words[@]}" out="$home/cancelled")
ended "$job" "$home/cancelled" 0
say "cancelled: saved and gone; another job went on in its folder"

# --- a sweep's jobs ------------------------------------------------------------------------------------------------------

train=(.venv/bin/python -m resnet.train)
log=$home/sweep.log
number() { grep -oP '"job": "\K\d+' "$1/slurm.json"; }                      # folder of a sweep's job
statuses() { grep -oP '^\| \d.*\| \K[a-z]+(?= *\|$)' "$1/summary.md" | paste -sd,; } # folder of a sweep
answers() { squeue >/dev/null 2>&1; }
submitted() { [[ -s $1/0/slurm.json && -s $1/1/slurm.json ]]; }

# A job that takes more than a minute, which is its limit, and a short one.
long=$(.venv/bin/python -c 'import json, sys; print(int(json.load(open(sys.argv[1]))["final/images_per_s"] / 32 * 60))' \
  "$home/one/result.json")
"${train[@]}" -m model=tiny recipe=quickstart epochs=9999 batch=32 track=off eval_every_epochs=99 log_every_steps=10 \
  save_every_steps=1000 "steps=$long,300" sweep.on=slurm sweep.slurm.time_min=1 sweep.slurm.cpus=1 out="$home/sweep" &>>"$log" &
parent=$!
within 120 submitted "$home/sweep"
first=$(number "$home/sweep/0")
within 120 at "$home/sweep/0" 500
kill -9 "$parent"
wait "$parent" 2>/dev/null || true
sbatch --partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap='sleep 5' >/dev/null
restarted() { (($(field "$first" Restarts) >= $1)); }
within 120 restarted 1 # preempted
kill "$controller"
"${train[@]}" sweep.resume="$home/sweep" &>>"$log" || true
grep -q "^error: squeue .*Unable to contact slurm controller" "$log" || die "resumed without Slurm"
slurmctld -D >/dev/null 2>&1 &
controller=$!
within 60 answers
"${train[@]}" sweep.resume="$home/sweep" &>>"$log" || die "the sweep that was resumed"
grep -q "is Slurm's job $first already" "$log" || die "the sweep has not found job $first again"
restarted 2 || die "job $first did not reach its time limit"
[[ $(statuses "$home/sweep") == finished,finished ]] || die "$(<"$home/sweep/summary.md")"
say "a sweep killed, its jobs preempted and out of time: requeued $(field "$first" Restarts) times, found again, finished"

nodes=(-m "${words[@]}" cluster=slurm cluster.ranks=2 "seed=1,2" sweep.on=slurm sweep.slurm.nodes=2
  sweep.slurm.cpus="$(nproc)" sweep.slurm.array_limit=1)
"${train[@]}" "${nodes[@]}" out="$home/grid" &>>"$log" &
parent=$!
within 120 submitted "$home/grid"
within 120 at "$home/grid/0" 60
second=$(number "$home/grid/1")
[[ $(field "$second" Reason) == Dependency ]] || die "job $second does not wait for the first"
kill -TERM "$parent"
wait "$parent" && die "the sweep went on after a signal"
[[ $(statuses "$home/grid") == interrupted,interrupted && -z $(squeue --noheader) ]] || die "$(<"$home/grid/summary.md")"
saved grid/0/output || die "the first job of the sweep: not saved"
is "$second" CANCELLED || die "job $second still waits"
"${train[@]}" sweep.resume="$home/grid" &>>"$log" || die "the sweep that was interrupted"
as_without_trouble "$home/grid/0" || die "the first job of the sweep: other weights than without the trouble"
say "a sweep on two nodes, a job at a time: interrupted, saved, gone on"

"${train[@]}" -m "${words[@]}" sweep.on=slurm out="$home/pruned" &>>"$log" &
parent=$!
within 120 at "$home/pruned/0" 60
job=$(number "$home/pruned/0")
touch "$home/pruned/0/prune" # what a search does
scancel --batch --signal=TERM "$job"
wait "$parent" || die "the sweep whose job was pruned"
[[ $(statuses "$home/pruned") == pruned && $(field "$job" Restarts) == 0 ]] || die "job $job: not pruned, or requeued"
[[ $(field "$job" ExitCode) == 144:0 ]] || die "job $job: exit status $(field "$job" ExitCode)"
say "a job pruned: saved, not requeued"

job=$(sbatch --parsable "${two[@]}" model=resnet51 out="$home/wrong")
within 60 is "$job" FAILED
[[ $(field "$job" ExitCode) == 1:0 ]] || die "job $job: exit status $(field "$job" ExitCode)"
say "a wrong word: failed at once, and not tried again"
say "all as it should be"
