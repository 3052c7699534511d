#!/usr/bin/env bash
# Tries tools/slurm_train.sh and slurm_test.sh with a real SLURM of one machine: as root, with Debian's
# packages slurm-wlm and munge, and the virtual environment active. It takes one minute:
#     sudo env PATH="$PATH" tests/try_slurm.sh
# A training that is told to stop is queued again, goes on, and ends with the weights of one that was not.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
mkdir "$folder/state" "$folder/spool"
cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=10 State=UP
CONF
export SLURM_CONF=$folder/slurm.conf GRES='' CPUS_PER_TASK=1 OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo
export SRUN_ARGS="--output=$folder/%x.log"
stop() {
  for daemon in slurmd slurmctld; do
    [ -f "$folder/$daemon.pid" ] && kill "$(cat "$folder/$daemon.pid")"
  done
  echo "logs: $folder"
}
trap stop EXIT
pidof munged >/dev/null || { mkdir -p /run/munge && chown munge /run/munge && runuser -u munge munged; }
slurmctld
slurmd
until sinfo -h -o %T | grep -q idle; do sleep 1; done

python tools/make_shapes.py "$folder/shapes" --train 8 --val 4 --size 64
config=configs/mask_rcnn_gcvit_nano_shapes.py
annotations=$folder/shapes/annotations/instances_validation.json
options=(--cfg-options train_cfg.max_epochs=8 train_cfg.val_interval=8 train_dataloader.batch_size=2
  val_evaluator.ann_file="$annotations" test_evaluator.ann_file="$annotations" default_hooks.logger.interval=1)
for split in train val test; do
  options+=("${split}_dataloader.dataset.data_root=$folder/shapes" "${split}_dataloader.num_workers=1")
done
ended() { # a job's state, when it has one at its end
  scontrol show job "$1" | grep -oE 'JobState=(COMPLETED|FAILED|CANCELLED|TIMEOUT)'
}

for name in whole stopped; do
  job=$(tools/slurm_train.sh main $name $config 2 --work-dir "$folder/$name" "${options[@]}" | grep -oE '[0-9]+$')
  if [ $name = stopped ]; then
    until grep -qs '\[3\]\[1/2\]' "$folder/stopped.log"; do sleep 0.2; done
    scancel --signal=USR1 "$job"
    until grep -qs 'to be queued again' "$folder/stopped.log"; do sleep 0.2; done
    until scontrol show job "$job" | grep -q 'JobState=PENDING'; do sleep 1; done
    scontrol update JobId="$job" StartTime=now
  fi
  until ended "$job"; do sleep 1; done
  ended "$job" | grep -q COMPLETED
  grep -E 'training (ends|resumes)' "$folder/$name.log" || true
done
python - "$folder"/{whole,stopped}/epoch_8.pth <<'PY'
import sys

import torch

from gcvit_mm.weights.files import read_checkpoint

whole, stopped = (read_checkpoint(path)['state_dict'] for path in sys.argv[1:])
assert all(torch.equal(whole[name], stopped[name]) for name in whole)
print(f'the same weights: {len(whole)} tensors')
PY
SRUN_ARGS='' tools/slurm_test.sh main evaluate $config "$folder/stopped/epoch_8.pth" 2 \
  --work-dir "$folder/evaluation" "${options[@]}" | grep -E 'coco/segm_mAP:'
