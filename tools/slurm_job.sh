#!/usr/bin/env bash
# What slurm_train.sh submits: slurm_job.sh TOOLS GRACE CONFIG [arguments of train.py]
# Trains, and queues the job again where the training was stopped before its end.
set -u
tools=$1 grace=$2 config=$3
shift 3
log=/proc/$$/fd/1
before=$(stat -Lc %s "$log")
logged() { # in this run: the log has the earlier ones too
  tail -c "+$((before + 1))" "$log" | grep -qa "$1"
}
stopped='training ends after iteration [0-9]*, saved'
queue_again() {
  echo "job $SLURM_JOB_ID: $1: to be queued again"
  scontrol requeue "$SLURM_JOB_ID" || {
    echo "error: job $SLURM_JOB_ID cannot be queued again: submit it anew, and it goes on" >&2
    exit 1
  }
}

# --resume of the arguments counts at first, and not when the job comes again.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  "$tools/slurm_task.sh" "$tools/train.py" "$config" --resume=auto "$@" \
  ${SLURM_RESTART_COUNT:+--resume=auto} &
step=$!
warned='' told='' late='' ended=''
trap 'warned=${warned:-$SECONDS}' USR1 # the time is nearly over
# SLURM ends the job: the training gets the signal too, and may need some time to save.
trap 'ended=1' TERM

while kill -0 "$step" 2>/dev/null; do
  # Once, for it may end a process that is leaving, and the others with it.
  if [ -n "$warned" ] && [ -z "$told" ] && logged 'Checkpoints will be saved to'; then
    told=1
    kill -USR1 "$step" # srun gives it to all processes
  fi
  if [ -n "$warned" ] && [ -z "$late" ] && [ "$SECONDS" -ge $((warned + grace - 10)) ]; then
    late=1
    if logged "$stopped" || logged 'Saving checkpoint at'; then
      queue_again 'its time is over before the training has ended'
      ended=1
    else # the same would come again and again
      echo "warning: job $SLURM_JOB_ID: its time is nearly over, and it has saved nothing: ask" \
        "for more time (SRUN_ARGS=--time=...)" >&2
    fi
  fi
  sleep 1
done
wait "$step"
status=$?
if [ -n "$ended" ]; then
  exit "$status"
elif logged "$stopped"; then
  queue_again 'stopped before the end'
  exit 0
elif [ "$status" -eq 143 ]; then # SIGTERM: preempted
  queue_again 'stopped before the training had begun'
  exit 0
fi
exit "$status"
