#!/usr/bin/env bash
# Queue the three stages of Ring-Lite-Distill, each after the one before it: stage 1, stage 2, reference scores, DPO.
# What is before -- goes to sbatch, what follows it to every stage, ahead of the stage's own file:
#
#   launch/chain.sh --nodes=2 --gpus-per-node=8 --exclusive --time=24:00:00 -- \
#       configs/model/ling_lite.yaml configs/parallel/16x80gb.yaml log.every=10
#
# STAGES="FILE.yaml..." names other stages. A stage with loss.head=dpo gets its pairs scored first, by the weights it
# starts from. An interrupted job is requeued under its number, so the others go on waiting; when one fails those that
# wait for it are cancelled. The numbers of the jobs are printed.
set -euo pipefail

options=() common=()
while (($#)) && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
if ! (($#)); then
  echo "usage: launch/chain.sh SBATCH-OPTION... -- FILE.yaml... key.path=value..." >&2
  exit 2
fi
common=("${@:2}")
read -ra stages <<<"${STAGES:-configs/sft_stage1.yaml configs/sft_stage2.yaml configs/dpo.yaml}"

settings() { # settings FILE.yaml... key.path=value...: the pairs to score, by what, and the layout, a word a line
  "${PYTHON:-.venv/bin/python}" - "$@" <<'PY'
import sys
from megatron_ring import config as configuration

files = [word for word in sys.argv[1:] if "=" not in word]
try:
    read = configuration.load(configuration.Config, files, [w for w in sys.argv[1:] if "=" in w])
except configuration.ConfigError as error:
    raise SystemExit(f"error: {error}") from None
if read.loss.head == "dpo":
    print(read.run.init_from, *filter(None, [read.data.train, read.data.valid]))
    print(*(f"parallel.{axis}={size}" for axis, size in read.parallel if axis in ("tp", "pp", "vpp", "cp", "ep")))
    print(f"run.dtype={read.run.dtype}")
PY
}

before=
queue() { # queue SCRIPT ARGUMENT...: a job after the one queued before
  local after=()
  if [ -n "$before" ]; then after=("--dependency=afterok:$before" --kill-on-invalid-dep=yes); fi
  before=$(sbatch --parsable "${options[@]}" "${after[@]}" "$@")
  before=${before%%;*} # a federation appends its cluster's name
  echo "$before $*"
}

for stage in "${stages[@]}"; do
  said=$(settings "${common[@]}" "$stage")
  if [ -n "$said" ]; then
    { read -r weights pairs && read -ra layout && read -r dtype; } <<<"$said"
    for folder in $pairs; do
      queue launch/score_reference.sbatch "$weights" "$folder" "${layout[@]}" "$dtype"
    done
  fi
  queue launch/train.sbatch "${common[@]}" "$stage"
done
