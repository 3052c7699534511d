#!/usr/bin/env bash
# Behind dist_train.sh and dist_test.sh: dist_run.sh SCRIPT CONFIG GPUS [arguments of the script]
set -euo pipefail
if [ $# -lt 3 ] || ! [[ $3 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: ${1%.py}: CONFIG and a number of GPUs, then further arguments" >&2
  exit 1
fi
script=$(dirname "$0")/$1 config=$2 processes=$3
shift 3
# Before processes start: a message of torchrun's would bury ours.
python -c 'import sys; from gcvit_mm.engine.launch import check_gpus, run; import torch
run(lambda: check_gpus(int(sys.argv[1]), torch.cuda.device_count()))' "$processes"
exec torchrun --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}" \
  --nproc-per-node "$processes" "$script" "$config" "$@" --launcher pytorch
