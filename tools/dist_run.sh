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
python -c 'import sys, torch; from gcvit_mm.cli import run; from gcvit_mm.engine.launch import check_gpus
run(lambda: check_gpus(int(sys.argv[1]), torch.cuda.device_count()))' "$processes"
# Processes that are started again go on from the checkpoints of this run.
GCVIT_MM_STARTED=$(date +%Y%m%d_%H%M%S)
export GCVIT_MM_STARTED
# torchrun would give them the addresses of the processes that died, which it keeps in a store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
nodes=${NNODES:-1} address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
options=(--nnodes "$nodes" --nproc-per-node "$processes" --max-restarts "${MAX_RESTARTS:-0}"
  --rdzv-backend c10d --rdzv-id "gcvit_mm_$port" --rdzv-endpoint "$address:$port")
if [ "${NODE_RANK:-0}" = 0 ]; then
  # The other machines are told this address, and not a name that they may not know.
  options+=(--local-addr "$address" --rdzv-conf is_host=true)
else
  options+=(--rdzv-conf is_host=false)
fi
exec python -m torch.distributed.run "${options[@]}" "$script" "$config" "$@" --launcher pytorch
