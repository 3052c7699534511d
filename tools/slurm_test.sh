#!/usr/bin/env bash
# Evaluate in the foreground by SLURM:
# slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT GPUS [arguments of test.py]
# From the environment: GPUS_PER_NODE, CPUS_PER_TASK, GRES, SRUN_ARGS (docs/slurm.md).
set -euo pipefail
if [ $# -lt 5 ] || ! [[ $5 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT GPUS [arguments of test.py]" >&2
  exit 1
fi
tools=$(cd "$(dirname "$0")" && pwd)
exec "$tools/slurm_ask.sh" srun "$1" "$2" "$3" "$5" --kill-on-bad-exit=1 \
  -- "$tools/slurm_task.sh" "$tools/test.py" "$3" "$4" "${@:6}"
