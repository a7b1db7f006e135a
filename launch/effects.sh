#!/usr/bin/env bash
# Which change of the data helped what, on tiny models: 12 runs whose sources coins decided, 32 runs of a made-up past in
# which longer runs got the new sources more often, and 24 further runs by coins that judge. The report shows what the past
# says by itself, what the coins say, and what both say together (CIO). All lands in runs/effects.
#
#   launch/effects.sh                     # 68 runs, two at a time; about half an hour on two free cores
#   JOBS=8 launch/effects.sh
#   TRY=1 launch/effects.sh               # corpus, base model and plans, then one run alone, to see that all works
#
# Finished steps are skipped when run again; FRESH=1 starts over.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
export OUTPUT=${OUTPUT:-runs/effects}
run=$OUTPUT # where launch/steps.sh notes what is done
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a process a run; more threads would only wait
source launch/steps.sh

pack() { # pack NAME SEED SOURCE...: rows of 512 tokens, twice as many as are learnt at least
  local name=$1 seed=$2 sources='' source
  shift 2
  for source; do sources+="{path: $run/raw/$source.jsonl, domain: topic},"; done
  "$bin/python" tools/pack.py "tokenizer=$run/tokenizer/tokenizer.model" "output=$run/packed/$name" row_tokens=512 \
    epochs=2 learn=all "seed=$seed" overwrite=true "sources=[$sources]"
}

train() { # train key=value...
  "$bin/python" -m megatron_ring.train configs/effects/{model,train}.yaml "$@"
}

score() { # score NAME FOLDER: how likely the right answers are; the weights are not needed after that
  "$bin/python" tools/score.py "$2" --input "$run/raw/test.jsonl" --output "$run/scores/$1.jsonl" --row-tokens 512
  if [ "$1" != base ]; then rm -rf "$2/checkpoints"; fi
}

one_run() { # one_run NAME SEED ARITHMETIC FACTS key=value...
  local name=$1 seed=$2 sources=(general)
  if [ "$3" = 1 ]; then sources+=(arithmetic); fi
  if [ "$4" = 1 ]; then sources+=(facts); fi
  shift 4
  step "$name-pack" "$name: rows of ${sources[*]}" pack "$name" "$seed" "${sources[@]}"
  step "$name-train" "$name: training" train "$@"
  step "$name-score" "$name: its scores" score "$name" "$run/runs/$name"
}

case "${1:-}" in
  steps) # in a process of its own, so that the first step that fails ends it
    one_run "${@:2}"
    exit
    ;;
  run) # as the plans' commands say
    mkdir -p "$run"/{done,logs,scores}
    if ! launch/effects.sh steps "${@:2}" >"$run/logs/$2.log" 2>&1; then
      echo "$2 failed; the end of $run/logs/$2.log:"
      tail -n 20 "$run/logs/$2.log"
      exit 255 # xargs stops
    fi
    echo "$2: done, $(find "$run/done" -name '*-*-score' | wc -l) runs so far"
    exit
    ;;
esac

if [ -n "${FRESH:-}" ]; then rm -rf "$run"; fi
mkdir -p "$run"/{done,logs,scores}
start=$SECONDS
read -r -a sizes <<<"${SIZES:-}" # options of tools/make_effects_corpus.py
read -r -a keys <<<"${PLAN:-}"   # of all three plans
step corpus "Sources and a test" "$bin/python" tools/make_effects_corpus.py "$run/raw" "${sizes[@]}"
step tokenizer "A tokenizer of 1,024 tokens" \
  "$bin/python" tools/train_tokenizer.py "$run"/raw/{base,general,arithmetic,facts}.jsonl "$run/tokenizer/tokenizer.model" --vocab-size 1024
step base-pack "Rows of the base model" pack base 1 base
step base-train "The base model" train "run.dir=$run/base" "data.train=$run/packed/base" optim.steps=250
step base-score "Its scores: how hard items are" score base "$run/base"

plans=(ablation truth history)
for plan in "${plans[@]}"; do
  step "plan-$plan" "Coins of $plan" "$bin/python" tools/effects.py plan "configs/effects/$plan.yaml" "${keys[@]}" \
    "output=$run/plans/$plan" "overrides.run.dir=$run/runs/{run}" "overrides.run.init_from=$run/base" \
    "overrides.data.train=$run/packed/{run}"
done
if [ -n "${TRY:-}" ]; then
  sh -c "$(head -n 1 "$run/plans/ablation/commands.txt")"
  echo "one run took $((SECONDS - start)) s with all before it"
  exit
fi
cat "$run"/plans/*/commands.txt | xargs -d '\n' -P "${JOBS:-2}" -n 1 sh -c

into_tables() { # into_tables FOLDER PLAN...: tables of the runs of plans
  local folder=$1 plan options=() results=() name
  shift
  for plan; do
    options+=(--plan "$run/plans/$plan")
    for name in $(sed 's/^launch\/effects.sh run \([^ ]*\) .*/\1/' "$run/plans/$plan/commands.txt"); do
      results+=("$run/runs/$name=$run/scores/$name.jsonl")
    done
  done
  "$bin/python" tools/effects.py import "${results[@]}" --output "$run/$folder" "${options[@]}" \
    --items "$run/raw/test.jsonl" --earlier "$run/base=$run/scores/base.jsonl" \
    --intervention arithmetic=source:arithmetic --intervention facts=source:facts
}
step tables "What is known: 12 runs by coins, and the past" into_tables tables ablation history
step truth "What judges" into_tables truth truth
step report "The effects of both sources" "$bin/python" tools/effects.py report "$run/tables" --truth "$run/truth" \
  --plan "$run/plans/ablation" --output "$run/report" --jobs "${JOBS:-2}"
echo "took $((SECONDS - start)) s; look at $run/report/report.html"
