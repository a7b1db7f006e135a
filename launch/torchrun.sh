#!/usr/bin/env bash
# Train on nodes without Slurm: the same line on each, with its NODE_RANK. Arguments are megatron_ring.train's; if the
# first is a .py file, that file's.
#
#   launch/torchrun.sh configs/model/ling_lite.yaml configs/parallel/8x80gb.yaml configs/sft_stage1.yaml   # one node
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/torchrun.sh ...                                       # of two
#   NPROC_PER_NODE=2 launch/torchrun.sh ...                                    # else a process a GPU (or processor)
#
# Told to stop (SIGTERM, SIGINT, SIGUSR1, SIGHUP) on any node, all ranks save and leave, however long it takes; torchrun
# itself would kill them after 30 seconds (so a systemd unit wants KillMode=mixed: the signal to this script only). Exit
# status 75 then, on a node that was told, and the same line goes on from there:
#
#   while launch/torchrun.sh ...; [ $? = 75 ]; do :; done
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/env.sh

program=(-m megatron_ring.train)
if [[ ${1:-} == *.py ]]; then program=(); fi
place=(--standalone)
if ((${NNODES:-1} > 1)); then
  if [ -z "${NODE_RANK:-}" ] || [ -z "${MASTER_ADDR:-}" ]; then
    echo "error: NNODES=$NNODES: set NODE_RANK (0 to $((NNODES - 1))) and MASTER_ADDR (of node 0), too" >&2
    exit 2
  fi
  place=(--nnodes="$NNODES" --node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="${MASTER_PORT:-29500}")
fi

told='' ranks=''
tell() { # SIGTERM to the ranks, which are torchrun's children; to itself if it has had none yet
  told=yes
  local children more
  # Builtins only: a signal to the whole group would end a `cat`, and torchrun would be told for want of ranks.
  for children in "/proc/$launcher/task"/*/children; do
    more='' && { read -r more <"$children" || true; } 2>/dev/null && ranks=${more:-$ranks}
  done
  # shellcheck disable=SC2086 # several numbers
  kill -TERM ${ranks:-"$launcher"} 2>/dev/null || true
}
# A session of its own: ctrl-c is to reach the ranks, not torchrun, which would count to 30.
setsid "${PYTHON:-.venv/bin/python}" -m torch.distributed.run "${place[@]}" \
  --nproc-per-node="${NPROC_PER_NODE:-auto}" "${program[@]}" "$@" &
launcher=$!
trap tell TERM INT USR1 HUP

status=0
while kill -0 "$launcher" 2>/dev/null; do # a signal ends bash's wait early
  status=0
  wait "$launcher" || status=$?
done
again=0
wait "$launcher" 2>/dev/null || again=$? # it ended between a signal and kill -0; 127: its status is known already
if ((again != 127)); then status=$again; fi
if ((status)) && [ -n "$told" ]; then exit 75; fi
exit "$status"
