# Sourced by the sbatch scripts of this folder: start a program on all ranks of the job, and come back when it was told
# to stop. The caller's `#SBATCH --signal=USR1@SECONDS` has Slurm tell all ranks (not this shell) so long before the time
# limit; preemption with a grace time, `scancel --signal=…` and people tell them too.
#
# PYTHON        another interpreter than .venv/bin/python
# SRUN_OPTIONS  more options of srun, such as pyxis' --container-image=…
# RUN_IN        a command that runs the ranks' command, such as `apptainer exec --nv FILE.sif`
# RESTARTS      come back at most so many times (default 1000)
source launch/env.sh
python=${PYTHON:-.venv/bin/python}

# SIGTERM to this shell itself: Slurm is ending the job on its own account (cancelled, out of time, or requeued, for
# preemption and lost nodes too). The ranks are told as well and save within the cluster's KillWait; bash runs a trap only
# after srun, so it stays until then. Without one it would be gone at once, and srun's output with it.
ended_by_slurm=
trap 'ended_by_slurm=yes' TERM

on_all_ranks() { # on_all_ranks COMMAND...: a process a GPU, or one a node without GPUs; then come back, or end
  local nodes=$SLURM_JOB_NUM_NODES tasks=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} first status=0
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # By the address that Slurm itself uses: a node's name need not be that of a host.
  MASTER_ADDR=$(scontrol show node "${first%%$'\n'*}" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # two jobs may share a node
  export MASTER_ADDR MASTER_PORT
  echo "── $(date '+%F %T') job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}: $((nodes * tasks)) ranks on $SLURM_JOB_NODELIST"

  # --cpus-per-task: else srun gives each rank one processor. --wait: when a rank has failed the others are ended, but
  # only after they had time to say what they know; --kill-on-bad-exit would hide the exit status, too.
  # shellcheck disable=SC2016,SC2086 # $SLURM_… are known to the ranks only; options and RUN_IN are several words
  srun --nodes="$nodes" --ntasks=$((nodes * tasks)) --ntasks-per-node="$tasks" \
    --cpus-per-task=$((SLURM_CPUS_ON_NODE > tasks ? SLURM_CPUS_ON_NODE / tasks : 1)) \
    --kill-on-bad-exit=0 --wait=60 ${SRUN_OPTIONS:-} ${RUN_IN:-} \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' rank "$@" || status=$?

  if [ -n "$ended_by_slurm" ]; then
    echo "── $(date '+%F %T') ended by Slurm, status $status"
    exit "$status"
  fi
  case $status in
    # megatron_ring/signals.py's status; 128 + SIGUSR1 and 128 + SIGTERM: told while Python was still importing.
    75 | 138 | 143) come_back ;;
    # megatron_ring/watchdog.py's. Not by itself: the rank that was lost may have failed for a reason that comes again.
    76) echo "a rank hung or lost another, see above; sbatch again goes on from the last save" >&2 ;;
  esac
  if ((status)); then
    echo "error: status $status: that was no signal, so the job is not requeued" >&2
  fi
  exit "$status"
}

alone() { # alone COMMAND...: one process with the job's processors; it starts over when the job is requeued
  # shellcheck disable=SC2086 # as above
  srun --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" ${SRUN_OPTIONS:-} ${RUN_IN:-} "$@"
}

come_back() { # requeue this job; it keeps its number, so jobs that depend on it go on waiting
  if ((${SLURM_RESTART_COUNT:-0} >= ${RESTARTS:-1000})); then
    echo "error: restarted $SLURM_RESTART_COUNT times, which is RESTARTS; submit again to go on" >&2
    exit 75
  fi
  echo "── $(date '+%F %T') told to stop: requeueing"
  scontrol requeue "$SLURM_JOB_ID"
  exit 75
}
