#!/usr/bin/env bash
# Train on several GPUs: dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT from the environment.
exec "$(dirname "$0")/dist_run.sh" train.py "$@"
