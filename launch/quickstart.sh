#!/usr/bin/env bash
# The whole road on a small scale, as `make quickstart` runs it: corpus, tokenizer, rows, two stages
# of fine-tuning, pairs and DPO with two processes, export, and two tables of what each stage can do.
# All lands in runs/quickstart.
# Finished steps are skipped when run again, and training resumes; FRESH=1 starts over.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
run=runs/quickstart
export OMP_NUM_THREADS=1 # two processes share the cores; more threads would only wait
if [ -n "${FRESH:-}" ]; then rm -rf "$run"; fi
mkdir -p "$run/done" "$run/corpus"

source launch/steps.sh

two() { # two COMMAND...: a Python program in two processes; torch.distributed.run is torchrun
  "$bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 "$@"
}

train() { # train STAGE
  two -m megatron_ring.train configs/model/ling_tiny.yaml configs/quickstart/{train,"$1"}.yaml
}

pack() { # pack NAME FILE key=value...: rows of corpus/NAME.jsonl and, unless it is none, of FILE
  local sources="{path: $run/corpus/$1.jsonl, domain: topic}"
  if [ "$2" != none ]; then sources+=", {path: $run/corpus/$2.jsonl, domain: topic}"; fi
  "$bin/python" tools/pack.py configs/quickstart/pack.yaml "sources=[$sources]" "output=$run/packed/$1" "${@:3}"
}

evaluate() { # evaluate STAGE: answers to what was held out, drawn at temperature 1, and grades
  "$bin/python" tools/evaluate.py run configs/quickstart/evaluate.yaml \
    "sampler.model=$run/$1" "output=$run/evaluation/$1"
}

step problems "Problems with answers, from reasoning-gym, and short chats" \
  "$bin/python" tools/make_quickstart_corpus.py "$run/raw"
step curate "A teacher's answers to them, verified; samples for both stages, and some held out" \
  "$bin/python" tools/teach.py -- \
  "$bin/python" tools/curate.py run configs/quickstart/curate.yaml "endpoint={endpoint}"
step corpus "The samples" cp "$run"/curated/mix/{stage1,stage2,valid,valid_chats}.jsonl "$run/corpus"
step tokenizer "A tokenizer of 2,048 tokens" \
  "$bin/python" tools/train_tokenizer.py "$run"/corpus/{stage1,stage2}.jsonl "$run/tokenizer/tokenizer.model"
step pack-stage1 "Rows of 1,024 tokens for stage 1" pack stage1 none epochs=3
step pack-stage2 "Rows for stage 2" pack stage2 none epochs=2
step pack-valid "Rows that are held out" pack valid valid_chats epochs=1

step stage1 "Stage 1, reasoning: a tiny Ling on two processes, the experts spread over both" \
  train sft_stage1
step stage2 "Stage 2, reasoning and general chat" train sft_stage2
step samples "Four answers of stage 2's model to each of 400 prompts" \
  "$bin/python" tools/sample.py "$run/stage2" --input "$run/corpus/stage2.jsonl" --limit 400 \
  --samples 4 --temperature 1 --max-tokens 256 --output "$run/samples.jsonl"
step pairs "Pairs: right against wrong answers, right against damaged think tags" \
  "$bin/python" tools/make_pairs.py blend configs/quickstart/blend.yaml
step pack-pairs "Rows of pairs" "$bin/python" tools/pack.py configs/quickstart/pairs.yaml
step reference "What stage 2 makes of the pairs" \
  two tools/score_reference.py "$run/stage2" "$run/packed/pairs" parallel.ep=2
step dpo "DPO" train dpo
step plot "The losses as a picture" \
  "$bin/python" tools/plot_loss.py "$run"/{stage1,stage2,dpo} --output "$run/loss.png"
step report "All charts of the three runs as one page" \
  "$bin/python" tools/report.py "$run"/{stage1,stage2,dpo} --output "$run/report.html"
step export "Export to Hugging Face format" \
  "$bin/python" tools/convert_checkpoint.py export "$run/dpo" "$run/hf"

for stage in stage1 stage2 dpo; do
  step "evaluate-$stage" "What $stage answers to what was held out" evaluate "$stage"
done
"$bin/python" tools/evaluate.py compare \
  stage1="$run/evaluation/stage1" stage2="$run/evaluation/stage2" dpo="$run/evaluation/dpo" --output "$run/tables"

cat <<TEXT

Done. In $run:
  curated/               what the corpus was made from, and why the rest was not taken
  corpus/                samples of both stages, and what was held out
  pairs/                 pairs of answers, and of those left out the reasons
  packed/                rows; look at one: $bin/python tools/show_rows.py $run/packed/pairs
  stage1/ stage2/ dpo/   the runs: metrics.jsonl, config.yaml, checkpoints/
  loss.png               their losses
  evaluation/            what the model said after each stage, and what it is worth
  tables/                the tables above, as Markdown, and report.html with plots and answers
  hf/                    the model in Hugging Face format

Next:
  $bin/python tools/sample.py $run/hf --prompt "What is the capital of Japan?"
  $bin/python tools/doctor.py                     what this machine is good for
  make quickstart FRESH=1                         all of it again
  Your own data and a real model: README.md, "The road".
TEXT
