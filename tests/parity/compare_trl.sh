#!/usr/bin/env bash
# The first preference step beside TRL's, in an environment of its own (TRL is no dependency).
# Arguments go to compare_trl.py.
#   COMPARE_ENV=~/envs/trl tests/parity/compare_trl.sh     an environment elsewhere
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${COMPARE_ENV:-.venv-trl}
VENV=$folder tools/install.sh
if ! "$folder/bin/python" -c 'import trl' 2>/dev/null; then
  torch=$("$folder/bin/python" -c 'from importlib.metadata import version; print(version("torch").split("+")[0])')
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "trl==1.16.0" "torch==$torch"
fi
PYTHONPATH=. exec "$folder/bin/python" tests/parity/compare_trl.py "$@"
