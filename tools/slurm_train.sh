#!/usr/bin/env bash
# Train by a batch job of SLURM: slurm_train.sh PARTITION JOB_NAME CONFIG GPUS [arguments of train.py]
# From the environment: GPUS_PER_NODE, CPUS_PER_TASK, GRES, SRUN_ARGS, GRACE (docs/slurm.md).
set -euo pipefail
if [ $# -lt 4 ] || ! [[ $4 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 PARTITION JOB_NAME CONFIG GPUS [arguments of train.py]" >&2
  exit 1
fi
tools=$(cd "$(dirname "$0")" && pwd)
grace=${GRACE:-120}
if ! [[ $grace =~ ^[0-9]+$ ]] || [ "$grace" -lt 20 ] || [ "$grace" -gt 65535 ]; then
  echo "error: GRACE is a number of seconds from 20 to 65535, not $grace" >&2
  exit 1
fi
# To the batch script alone, which passes it on: so it knows that the time is nearly over.
exec "$tools/slurm_ask.sh" sbatch "$1" "$2" "$3" "$4" \
  --signal="B:USR1@$grace" --requeue --open-mode=append --output=%x-%j.log \
  -- "$tools/slurm_job.sh" "$tools" "$grace" "$3" "${@:5}"
