#!/usr/bin/env bash
# The test-suite on Python 3.12 with megatron-core 0.19.2, in an environment of its own. Arguments
# go to pytest.
#   tests/compat.sh -m "not gpu and not slow" -n 2
#   COMPAT_ENV=~/envs/compat tests/compat.sh tests/test_style.py     an environment elsewhere
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${COMPAT_ENV:-.venv-compat}

is_312() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

find_312() { # on the path, then pyenv's; a pyenv shim may be there without working
  local candidate
  for candidate in ${PYTHON:-} python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python; do
    if is_312 "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  if command -v uv >/dev/null && uv python install --quiet 3.12 >&2; then
    uv python find 3.12
    return
  fi
  echo "tests/compat.sh: no working Python 3.12 (with venv) on the path or under ~/.pyenv/versions." >&2
  echo "Install one, or name it: PYTHON=/path/to/python3.12 tests/compat.sh" >&2
  return 1
}

if ! [ -x "$folder/bin/python" ]; then
  python=$(find_312)
  PYTHON=$python VENV=$folder tools/install.sh
else
  VENV=$folder tools/install.sh
fi

"$folder/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

found = (sys.version_info[:2], version("megatron-core"))
if found != ((3, 12), "0.19.2"):
    sys.exit(f"tests/compat.sh: Python 3.12 with megatron-core 0.19.2 is wanted, this is {found}")
print(f"Python {sys.version.split()[0]}, megatron-core {found[1]}, torch {version('torch')}")
PYTHON
exec env OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest "$@"
