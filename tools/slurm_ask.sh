#!/usr/bin/env bash
# Behind slurm_train.sh and slurm_test.sh:
# slurm_ask.sh sbatch|srun PARTITION JOB_NAME CONFIG GPUS [options of sbatch or srun] -- COMMAND ...
set -euo pipefail
ask=$1 partition=$2 name=$3 config=$4 processes=$5
shift 5
options=()
while [ "$1" != -- ]; do
  options+=("$1")
  shift
done
shift
if ! command -v "$ask" >/dev/null; then
  echo "error: $ask was not found: this machine has no SLURM; tools/dist_train.sh and" \
    "tools/dist_test.sh do without" >&2
  exit 1
fi
if [[ $config == *.py ]] && ! [ -f "$config" ]; then  # now, and not when the job's turn has come
  echo "error: config $config does not exist: give a file, or a name of the zoo's" >&2
  exit 1
fi
per_node=${GPUS_PER_NODE:-$((processes < 8 ? processes : 8))}
gres=${GRES-gpu:$per_node}
read -ra more <<<"${SRUN_ARGS:-}"
exec "$ask" --partition="$partition" --job-name="$name" \
  --ntasks="$processes" --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" \
  ${gres:+--gres="$gres"} ${options[@]+"${options[@]}"} ${more[@]+"${more[@]}"} "$@"
