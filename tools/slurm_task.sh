#!/usr/bin/env bash
# What srun starts, once for each process: slurm_task.sh SCRIPT [arguments of the script]
set -euo pipefail
# Two jobs may share a machine. Below 32768, where Linux takes ports for connections.
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
trap '' USR1 # until the training listens
exec python -u "$@" --launcher slurm
