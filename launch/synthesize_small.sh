#!/usr/bin/env bash
# New problems of maths, science and code, written and solved by a real small model on the CPU:
#   launch/synthesize_small.sh [OUT [ENDPOINT]]
# Without ENDPOINT tools/serve_small.py runs beside it, and ends with it. Code needs bubblewrap.
# Every reply is kept in OUT/replies: stopped and started again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/synthesis_small} endpoint=${2:-}
bin=${VENV:-.venv}/bin
export OMP_NUM_THREADS=1
mkdir -p "$out"

if [ -z "$endpoint" ]; then
  echo "── The server: SmolLM2, 135 million weights"
  exec "$bin/python" tools/serve_small.py --port 0 --cache "$out/server" -- \
    launch/synthesize_small.sh "$out" {endpoint}
fi

for kind in maths science code; do
  echo "── $kind"
  start=$SECONDS
  "$bin/python" tools/synthesize.py run "configs/curate/small/$kind.yaml" \
    "writer.endpoint=$endpoint" "writer.replies=$out/replies" "output=$out/$kind"
  echo "   ($((SECONDS - start)) s)"
done

cat <<TEXT

Done. In $out, for each of maths, science and code:
  kept.jsonl       new problems; read them: that answers agree does not make a problem a good one
  funnel.html      what became of requests, by round
  rounds/          what was rejected, and why

Next:
  $bin/python tools/synthesize.py show $out/maths --reason no_agreement
  $bin/python tools/synthesize.py run configs/curate/small/maths.yaml total=100 rounds=10 \\
    writer.endpoint=URL writer.replies=$out/replies output=$out/maths    more of it; URL is that of
    $bin/python tools/serve_small.py --cache $out/server
  A real model: configs/curate/synthesis/*.yaml
TEXT
