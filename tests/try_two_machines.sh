#!/usr/bin/env bash
# Loses one of two machines amid a training, and replaces it: as root, with iproute2, and the virtual
# environment active. It takes two minutes:
#     sudo env PATH="$PATH" tests/try_two_machines.sh
# The machines are network namespaces. One is cut off (its link goes down, its processes are killed),
# another takes its place, and the training ends with the weights of one that lost none.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ] || ! command -v ip >/dev/null; then
  echo "skipped: network namespaces need root and iproute2" >&2
  exit 0
fi
folder=$(mktemp -d)
name=gcvit$$
export GLOO_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 NNODES=2 MASTER_ADDR=10.77.0.1 MAX_RESTARTS=3
export PYTHONPATH=$PWD:$PWD/tests

stop() {
  for machine in 1 2 3 switch; do
    ip netns pids "$name-$machine" | xargs -r kill -9
    ip netns delete "$name-$machine"
  done
  echo "logs: $folder"
}
ip netns add "$name-switch"
ip -n "$name-switch" link add switch type bridge
ip -n "$name-switch" link set switch up
for machine in 1 2 3; do
  ip netns add "$name-$machine"
  ip -n "$name-$machine" link add eth0 type veth peer name "port$machine" netns "$name-switch"
  ip -n "$name-switch" link set "port$machine" master switch up
  ip -n "$name-$machine" address add "10.77.0.$machine/24" dev eth0
  ip -n "$name-$machine" link set eth0 up
  ip -n "$name-$machine" link set lo up
done
trap stop EXIT

python tools/make_shapes.py "$folder/shapes" --train 20 --val 4 --size 64
python -c 'from test_elastic import CONFIG; print(CONFIG)' > "$folder/config.py"
start() { # RUN MACHINE NODE_RANK
  NODE_RANK=$3 ip netns exec "$name-$2" tools/dist_train.sh "$folder/config.py" 1 --resume \
    --work-dir "$folder/$1" --cfg-options train_dataloader.dataset.data_root="$folder/shapes" \
    train_dataloader.batch_size=6 train_dataloader.num_workers=1 train_cfg.max_iters=200 \
    val_cfg=None val_dataloader=None val_evaluator=None >> "$folder/$1-$2.log" 2>&1 &
}
steps() { # of RUN so far
  cat "$folder/$1/losses" 2>/dev/null | wc -l
}

start whole 1 0
first=$!
start whole 2 1
wait $! $first

start lost 1 0
first=$!
start lost 2 1
until [ "$(steps lost)" -ge 50 ]; do sleep 0.1; done
ip -n "$name-switch" link set port2 down
ip netns pids "$name-2" | xargs kill -9
before=$(steps lost) since=$(date +%s)
start lost 3 1
until [ "$(steps lost)" -gt "$before" ]; do
  kill -0 $first || { tail -n 50 "$folder"/lost-*.log; exit 1; }
  sleep 0.1
done
echo "trained on $(($(date +%s) - since)) seconds after the loss of a machine"
wait $! $first
python - "$folder"/{whole,lost} <<'PY'
import sys

import torch

from gcvit_mm.weights.files import read_checkpoint

whole, lost = (read_checkpoint(f'{folder}/iter_200.pth')['state_dict'] for folder in sys.argv[1:])
assert all(torch.equal(whole[name], lost[name]) for name in whole)
steps = [int(line.split()[0]) for line in open(f'{sys.argv[2]}/losses')]
print(f'the same weights: {len(whole)} tensors; {len(steps) - len(set(steps))} steps were repeated')
PY
