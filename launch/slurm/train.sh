#!/usr/bin/env bash
# What the batch files run in the allocation: the training, which starts a rank for each task, in the folder that sbatch was
# called from. The words go to the training; PYTHON=<path> names an interpreter other than the checkout's.
#
# Slurm's warning of the time limit (--signal=B:USR1@<seconds>) has the run saved and the job put back into the queue, where
# it goes on in the same folder. SIGTERM, which scancel and preemption bring, has it saved only: Slurm knows what comes then.
set -u

out='' job=''
for word in "$@"; do
  case $word in
    out=* | resume=*) out=${word#*=} ;;
    sweep.only=*) job=/${SLURM_ARRAY_TASK_ID:-${word#*=}} ;; # a job of a sweep, in a folder of its own
  esac
done
if [[ -z $out ]]; then
  out=runs/slurm-$SLURM_JOB_ID # the same after a requeue
  set -- "out=$out" "$@"
fi
newest() { # checkpoint
  local found=("$out$job"/checkpoints/step-*)
  printf '%s' "${found[-1]}"
}
before=$(newest)

again='' heard=''
trap 'again=yes heard=yes; kill -TERM "$run"' USR1
trap 'heard=yes; kill -TERM "$run"' TERM

"${PYTHON:-.venv/bin/python}" -m resnet.train cluster=slurm "$@" &
run=$!
# A trap ends `wait` early; asked again, it still knows how the run came out.
until
  heard=''
  wait "$run"
  status=$?
  [[ -z $heard ]]
do :; done

# 143: stopped, and there is more to do. A limit too short to get any further would have it start for ever.
if ((status == 143)) && [[ -n $again && $(newest) != "$before" ]]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
