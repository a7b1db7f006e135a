#!/usr/bin/env bash
# The whole road on a small scale, as `make quickstart` runs it: corpus, tokenizer, rows, training
# with two processes, samples before and after, export. Everything lands in runs/quickstart.
# Finished steps are skipped when run again, and training resumes; FRESH=1 starts over.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
run=runs/quickstart
export OMP_NUM_THREADS=1 # two processes share the cores; more threads would only wait
if [ -n "${FRESH:-}" ]; then rm -rf "$run"; fi
mkdir -p "$run/done" "$run/answers"

step() { # step NAME TITLE COMMAND...: run the command unless NAME is done
  local name=$1 title=$2
  shift 2
  if [ -e "$run/done/$name" ]; then
    echo "── $title: done before"
    return
  fi
  echo "── $title"
  echo "   $*"
  local start=$SECONDS
  "$@"
  touch "$run/done/$name"
  echo "   ($((SECONDS - start)) s)"
}

train() { # train PROCESSES key=value...; torch.distributed.run is torchrun
  local processes=$1
  shift
  "$bin/python" -m torch.distributed.run --standalone --nproc-per-node "$processes" -m megatron_ring.train \
    configs/model/ling_tiny.yaml configs/quickstart/train.yaml "$@"
}

held_out() { # a problem of each kind that training does not see, one a line
  "$bin/python" - "$run/corpus/valid.jsonl" <<'PYTHON'
import json, sys

found = {}
for line in open(sys.argv[1], encoding="utf-8"):
    sample = json.loads(line)
    prompt = sample["messages"][-2]["content"]
    if len(sample["messages"]) == 2 and "\n" not in prompt:
        found.setdefault(sample["task"], prompt)
print("\n".join(found.values()))
PYTHON
}

newest() { ls -d "$1"/checkpoints/step-* | sort | tail -n 1; } # checkpoint of a run

answers() { # answers RUN FILE: what its model says to the held-out problems
  local arguments=()
  while read -r prompt; do arguments+=(--prompt "$prompt"); done <<<"$(held_out)"
  "$bin/python" tools/sample.py "$(newest "$1")" "${arguments[@]}" --max-tokens 100 \
    --output "$2" >"${2%.jsonl}.txt"
}

step corpus "Problems with worked solutions, checked by reasoning-gym, and short chats" \
  "$bin/python" tools/make_quickstart_corpus.py "$run/corpus"
step tokenizer "A tokenizer of 2,048 tokens" \
  "$bin/python" tools/train_tokenizer.py "$run/corpus/train.jsonl" "$run/tokenizer/tokenizer.model"
step pack-train "Rows of 1,024 tokens to train on" \
  "$bin/python" tools/pack.py configs/quickstart/pack.yaml
step pack-valid "Rows that are held out" \
  "$bin/python" tools/pack.py configs/quickstart/pack.yaml epochs=1 \
  "sources.0.path=$run/corpus/valid.jsonl" "output=$run/packed/valid"
step untrained "A model before training (one step with no learning rate to speak of)" \
  train 1 "run.dir=$run/untrained" parallel.ep=1 optim.steps=1 optim.warmup_steps=0 optim.lr=1e-12
step train "Training a tiny Ling on two processes, the experts spread over both" train 2
step plot "The loss as a picture" "$bin/python" tools/plot_loss.py "$run/run"
step export "Export to Hugging Face format" \
  "$bin/python" tools/convert_checkpoint.py export "$(newest "$run/run")" "$run/hf"

step answers-before "Answers to held-out problems before training" \
  answers "$run/untrained" "$run/answers/before.jsonl"
step answers-after "Answers to held-out problems after training" \
  answers "$run/run" "$run/answers/after.jsonl"
"$bin/python" tools/compare_answers.py "$run/corpus/valid.jsonl" "$run"/answers/{before,after}.jsonl

cat <<TEXT

Done. In $run:
  corpus/       train.jsonl, valid.jsonl: what was learnt, and what was held out
  packed/       rows; look at one: $bin/python tools/show_rows.py $run/packed/train
  run/          loss.png, metrics.jsonl, config.yaml, checkpoints/
  hf/           the model in Hugging Face format
  answers/      what the model said before and after

Next:
  $bin/python tools/sample.py $run/hf --prompt "What is the capital of Japan?"
  $bin/python tools/doctor.py                     what this machine is good for
  make quickstart FRESH=1                         all of it again
  Your own data and a real model: README.md, "The road".
TEXT
