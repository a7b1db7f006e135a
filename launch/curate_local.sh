#!/usr/bin/env bash
# Data sets on this machine -> the two stages' rows, a report, and a tiny Ling trained on them:
#   launch/curate_local.sh DATA [OUT]
# DATA holds the folders that configs/curate/sources/*.yaml name (GSM8K, MATH, MBPP, AGIEval,
# Seal-Tools, ...) and the benchmarks below. What is finished is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$(realpath "${1:?usage: launch/curate_local.sh DATA [OUT]}") out=${2:-runs/curated}
bin=${VENV:-.venv}/bin
export OMP_NUM_THREADS=1
mkdir -p "$out/fingerprints"

fingerprint() { # fingerprint NAME FILE COLUMN: of a benchmark that must not be trained on
  [ -e "$out/fingerprints/$1" ] || "$bin/python" tools/fingerprint.py build "$1" "$data/$2" \
    --column "$3" --output "$out/fingerprints/$1" --salt "$out/fingerprints/salt"
}
fingerprint aime24 aime24/aime24.jsonl problem
fingerprint math500 math500/math500.jsonl problem
fingerprint gsm8k gsm8k/test.jsonl question

curate() { # curate STAGE SOURCE...
  local stage=$1
  shift
  "$bin/python" tools/curate.py run "${@/#/configs/curate/sources/}" "configs/curate/local_$stage.yaml" \
    data="$data" fingerprints="$out/fingerprints" output="$out/$stage" workers="$(nproc)"
}
curate stage1 maths.yaml science.yaml code.yaml
curate stage2 maths.yaml science.yaml code.yaml general.yaml tools.yaml
for stage in stage1 stage2; do
  "$bin/python" tools/check_contamination.py "$out/$stage" --salt "$out/fingerprints/salt" \
    --fingerprint "$out/fingerprints/aime24" --fingerprint "$out/fingerprints/math500" \
    --fingerprint "$out/fingerprints/gsm8k"
done
"$bin/python" tools/taxonomy_report.py "$out"/stage1/kept "$out"/stage2/kept --output "$out/report.html"

[ -e "$out/tokenizer.model" ] || "$bin/python" tools/train_tokenizer.py \
  "$out"/stage2/kept/*.jsonl "$out/tokenizer.model" --vocab-size 8192
for stage in stage1 stage2; do
  [ -e "$out/packed/$stage" ] || "$bin/python" tools/pack.py "$out/$stage/mix/pack.yaml" \
    tokenizer="$out/tokenizer.model" row_tokens=2048 output="$out/packed/$stage"
done
tiny=(configs/model/ling_tiny.yaml model.vocab_size=8192 model.max_position_embeddings=2048)
tiny+=(data.rows_per_step=4 optim.lr=2e-3 optim.warmup_steps=20 optim.steps=100 log.every=10)
"$bin/python" -m megatron_ring.train "${tiny[@]}" data.train="$out/packed/stage1" run.dir="$out/run1"
"$bin/python" -m megatron_ring.train "${tiny[@]}" data.train="$out/packed/stage2" run.dir="$out/run2" \
  run.init_from="$out/run1" optim.lr=1e-3
"$bin/python" tools/report.py "$out"/run1 "$out"/run2 --output "$out/runs.html"
