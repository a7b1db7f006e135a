# `make` alone lists the targets. Everything runs in VENV (default .venv), made by tools/install.sh.
VENV ?= .venv
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest
WORKERS ?= 2

.PHONY: help install quickstart reproduce effects test test-slow test-gpu compat lint format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

install:  ## make $(VENV) with everything; PYTHON=... picks the interpreter
	@VENV=$(VENV) tools/install.sh

quickstart: install  ## corpus, tokenizer, packing, training, samples, export in minutes on two cores; FRESH=1 starts over
	@VENV=$(VENV) FRESH=$(FRESH) launch/quickstart.sh

reproduce: install  ## pre-training, both stages and DPO of a tiny Ling, three seeds, evaluated; about an hour on two cores
	@VENV=$(VENV) FRESH=$(FRESH) launch/reproduce.sh

effects: install  ## what two changes of the data did, from 12 randomized and 32 past runs of a tiny Ling; half an hour
	@VENV=$(VENV) FRESH=$(FRESH) launch/effects.sh

test: install  ## the fast test-suite and the linter, as CI runs them
	$(PYTEST) -m "not gpu and not multi_gpu and not slow" -n $(WORKERS) --dist worksteal
	@$(MAKE) --no-print-directory lint

test-slow: install  ## the long CPU tests
	$(PYTEST) -m "slow and not gpu and not multi_gpu" -n $(WORKERS) --dist worksteal

test-gpu: install  ## the tests that need CUDA devices
	$(PYTEST) -m "gpu or multi_gpu"

compat:  ## the test-suite on Python 3.12 with the newer megatron-core
	tests/compat.sh -m "not gpu and not multi_gpu and not slow" -n $(WORKERS) --dist worksteal

lint: install  ## ruff check and ruff format --check
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: install  ## let ruff rewrite what it can
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

clean:  ## remove environments and caches; runs/ stays
	rm -rf .venv .venv-compat *.egg-info build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path "./runs/*" -prune -exec rm -rf {} +
