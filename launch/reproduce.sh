#!/usr/bin/env bash
# The road of Ring-Lite-Distill on a small scale, with several seeds: a tiny Ling is pre-trained on a mixed corpus, then
# SFT stage 1 (reasoning alone), stage 2 (mixed) and DPO (general and structural pairs); each is evaluated on what was
# held out, and the report's Tables 2 and 3 are drawn at the end. All lands in runs/repro.
#
#   launch/reproduce.sh                           # three seeds side by side: a laptop, about an hour
#   SEEDS="0 1 2 3 4" JOBS=5 launch/reproduce.sh
#   SCALE=h200 JOBS=1 launch/reproduce.sh         # larger, on one GPU
#   launch/reproduce.sh 3                         # the road of seed 3 alone, without the tables
#   SIZES="--pretrain 600 --stage1 1200 --stage2 600 --general 600 --test 60" launch/reproduce.sh      # a rehearsal
#
# Finished steps are skipped when run again, and training resumes; FRESH=1 starts over.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
root=${OUTPUT:-runs/repro}
scale=${SCALE:-cpu}
seeds=${SEEDS:-0 1 2}
for number in $seeds; do
  if ! [[ $number =~ ^[0-9]+$ ]]; then
    echo "error: SEEDS=$seeds: $number is no number" >&2
    exit 2
  fi
done
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a process a seed; more threads would only wait
source launch/steps.sh

case $scale in # sizes: options of tools/make_repro_corpus.py
  cpu)
    model=configs/repro/model.yaml
    sizes=(--pretrain 1200 --stage1 14400 --stage2 1800 --general 2400 --test 240)
    ;;
  h200)
    model=configs/repro/h200/model.yaml
    sizes=(--pretrain 9000 --stage1 9000 --stage2 3600 --general 9000 --test 480)
    ;;
  *)
    echo "error: SCALE=$scale is neither cpu nor h200" >&2
    exit 2
    ;;
esac
if [ -n "${SIZES:-}" ]; then read -r -a sizes <<<"$SIZES"; fi

train() { # train STAGE key=value...: one process
  local files=(configs/repro/{train,"$1"}.yaml)
  if [ "$scale" != cpu ]; then files+=("configs/repro/$scale"/{train,"$1"}.yaml); fi
  "$bin/python" -m megatron_ring.train "$model" "${files[@]}" \
    "run.dir=$run/$1" "run.seed=$((1234 + seed))" "data.train=$run/packed/$1" "${@:2}"
}

pack() { # pack STAGE FILE...: rows of chats
  local name=$1 sources='' file
  shift
  for file; do sources+="{path: $run/$file, domain: topic},"; done
  local learn=answers epochs=3
  if [ "$name" = pretrain ]; then learn=all; fi
  if [ "$name" = sft_stage2 ]; then epochs=4; fi # it is short, and has to bring much back
  "$bin/python" tools/pack.py configs/repro/pack.yaml "tokenizer=$run/tokenizer/tokenizer.model" \
    "output=$run/packed/$name" "learn=$learn" "epochs=$epochs" "seed=$((1234 + seed))" "sources=[$sources]"
}

evaluate() { # evaluate STAGE: answers to what was held out, and grades
  "$bin/python" tools/evaluate.py run configs/repro/evaluate.yaml \
    "sampler.model=$run/$1" "sampler.seed=$seed" "data=$run/raw/test" "output=$run/evaluation/$1"
}

one_seed() { # all steps of a seed
  step corpus "Problems with answers, facts, instructions, calls of tools" \
    "$bin/python" tools/make_repro_corpus.py "$run/raw" --seed "$seed" "${sizes[@]}"
  step curate "A teacher works the problems out; its answers are verified" \
    "$bin/python" tools/teach.py -- \
    "$bin/python" tools/curate.py run configs/repro/curate.yaml "data=$run" "endpoint={endpoint}"
  step tokenizer "A tokenizer of 2,048 tokens" \
    "$bin/python" tools/train_tokenizer.py \
    "$run"/raw/pretrain.jsonl "$run"/curated/mix/stage1.jsonl "$run"/raw/general.jsonl "$run/tokenizer/tokenizer.model"
  step pack-pretrain "Rows of the mixed corpus, all of which is learnt" pack pretrain raw/pretrain.jsonl
  step pack-stage1 "Rows of stage 1" pack sft_stage1 curated/mix/stage1.jsonl
  step pack-stage2 "Rows of stage 2" pack sft_stage2 curated/mix/stage2.jsonl raw/general.jsonl

  step pretrain "Pre-training" train pretrain
  step stage1 "Stage 1, reasoning" train sft_stage1 "run.init_from=$run/pretrain"
  step stage2 "Stage 2, reasoning and general" train sft_stage2 "run.init_from=$run/sft_stage1"
  step samples "Four answers of stage 2's model to each of 400 prompts" \
    "$bin/python" tools/sample.py "$run/sft_stage2" --input "$run/curated/mix/stage2.jsonl" --limit 400 \
    --samples 4 --temperature 1 --max-tokens 256 --seed "$seed" --output "$run/samples.jsonl"
  step pairs "Pairs: right against wrong answers, right against damaged think tags" \
    "$bin/python" tools/make_pairs.py blend configs/repro/blend.yaml "output=$run/pairs" \
    "general.sources.0.path=$run/samples.jsonl" "general.sources.0.of=$run/curated/mix/stage2.jsonl" \
    "structure.sources.0.path=$run/curated/mix/stage2.jsonl"
  step pack-pairs "Rows of pairs" "$bin/python" tools/pack.py configs/repro/pairs.yaml \
    "tokenizer=$run/tokenizer/tokenizer.model" "output=$run/packed/dpo" \
    "sources.0.path=$run/pairs/general.jsonl" "sources.1.path=$run/pairs/structure.jsonl"
  step reference "What stage 2 makes of the pairs" \
    "$bin/python" tools/score_reference.py "$run/sft_stage2" "$run/packed/dpo"
  step dpo "DPO" train dpo "run.init_from=$run/sft_stage2"

  local stage
  for stage in pretrain sft_stage1 sft_stage2 dpo; do
    step "evaluate-$stage" "What $stage can do" evaluate "$stage"
  done
}

if [ $# -gt 0 ]; then
  seed=$1 run=$root/seed-$1
  mkdir -p "$run/done"
  one_seed
  exit
fi

if [ -n "${FRESH:-}" ]; then rm -rf "$root"; fi
mkdir -p "$root"
echo "seeds $seeds, ${JOBS:-3} at a time; what each says is in $root/seed-N.log"
start=$SECONDS
# shellcheck disable=SC2016 # $0 is the inner shell's
printf '%s\n' $seeds | xargs -P "${JOBS:-3}" -I{} sh -c '
  if "$0" {} >"$1/seed-{}.log" 2>&1; then echo "seed {}: done"
  else echo "seed {} failed; the end of $1/seed-{}.log:"; tail -n 20 "$1/seed-{}.log"; exit 255; fi' "$0" "$root"
columns=()
for stage in pretrain sft_stage1 sft_stage2 dpo; do
  runs=$(printf "$root/seed-%s/evaluation/$stage," $seeds)
  columns+=("$stage=${runs%,}")
done
"$bin/python" tools/evaluate.py compare "${columns[@]}" --output "$root/tables"
echo "took $((SECONDS - start)) s; tables and plots are in $root/tables"
