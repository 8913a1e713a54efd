# `make demo` and `make test` do their own set-up. `make help` lists the rest.

# The first that will do; there is no binary of coincurve for Python 3.14 yet.
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for one in python3 python3.13 python3.12 python3.11 python3.10; do \
  $$one -c '$(FITS)' 2>/dev/null && echo $$one && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INTEROP := .venv-interop/bin/python -m pip --disable-pip-version-check
# Everything in .venv and .venv-interop is hash-checked; torch and tenseal (setup-torch,
# setup-tenseal) are not: their versions are fixed, their hashes and what they need are not. Two
# packages exist as source only; they are built with the locked setuptools, so that a build fetches
# nothing either.
INSTALL := install --quiet --require-hashes --only-binary :all:
FROM_SOURCE := --no-build-isolation --no-binary python-baseconv,varint
OUT ?= out/demo
WORKERS ?= 3
DATA ?= ../shared/data/mnist
STEPS ?= 20000
PAYLOADS ?= 100000
KILLS ?= 200
SEED ?= 1

READY := $(VENV)/.ready
READY_INTEROP := .venv-interop/.ready
READY_TORCH := .venv-torch/.ready
READY_TENSEAL := .venv-tenseal/.ready

.DEFAULT_GOAL := help
.PHONY: help setup setup-interop setup-torch setup-tenseal demo test soak faults test-torch lint types \
  format contracts check-contracts check-kernels bench bench-csves lock clean

help: ## say what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(READY) ## make .venv with everything locked (PYTHON=python3.12 chooses the interpreter)

$(READY): requirements/build.lock requirements/dev.lock setup.cfg setup.py pyproject.toml \
  $(wildcard gradledger/paillier/csrc/*)
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITS)' || \
	  { echo "set-up needs Python 3.10 to 3.13, found none: make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what requirements/dev.lock pins into $(VENV)"
	@$(PIP) $(INSTALL) -r requirements/build.lock
	@$(PIP) $(INSTALL) $(FROM_SOURCE) -r requirements/dev.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable . >$(VENV)/setup.log 2>&1 || \
	  { cat $(VENV)/setup.log >&2; exit 1; }
	@touch $@

setup-interop: $(READY_INTEROP) ## make .venv-interop with pyntelope and eospy

$(READY_INTEROP): requirements/build.lock requirements/interop.lock
	@test -x .venv-interop/bin/python || $(PYTHON) -m venv .venv-interop
	@$(PIP_INTEROP) $(INSTALL) -r requirements/build.lock
	@$(PIP_INTEROP) $(INSTALL) --no-build-isolation --no-binary libeospy -r requirements/interop.lock
	@touch $@

setup-torch: $(READY_TORCH) ## make .venv-torch: PyTorch on top of .venv

$(READY_TORCH): $(READY)
	@test -x .venv-torch/bin/python || $(BIN)/python -m venv .venv-torch
	@.venv-torch/bin/python -c "import pathlib, sysconfig; \
	  here = pathlib.Path(sysconfig.get_path('purelib')); \
	  base = pathlib.Path('$(VENV)').resolve() / here.relative_to(here.parents[2]); \
	  (here / 'base.pth').write_text(f'import site; site.addsitedir({str(base)!r})\n')"
	@.venv-torch/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	@touch $@

setup-tenseal: $(READY_TENSEAL) ## make .venv-tenseal: CKKS, for bench.paillier to measure too

$(READY_TENSEAL): $(READY) requirements/tenseal.in
	@test -x .venv-tenseal/bin/python || $(BIN)/python -m venv .venv-tenseal
	@.venv-tenseal/bin/python -m pip --disable-pip-version-check install --quiet \
	  --only-binary :all: -r requirements/tenseal.in
	@touch $@

demo: setup ## ten devices, fifteen rounds, four validators, on real parts (OUT=DIR)
	@$(BIN)/gradledger demo --out $(OUT)

test: setup setup-interop ## all tests, on a real node and a real Kubo (WORKERS=N, ARGS=...)
	@$(BIN)/gradledger parts fetch >/dev/null
	@$(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

soak: setup ## long random runs against the contract (STEPS=N, PAYLOADS=N, SEED=N); results in bench
	@$(BIN)/gradledger parts fetch >/dev/null
	@STATEFUL_STEPS=$(STEPS) STATEFUL_SEED=$(SEED) STATEFUL_OUT=bench/results/stateful.json \
	  MALFORMED_PAYLOADS=$(PAYLOADS) MALFORMED_SEED=$(SEED) MALFORMED_OUT=bench/results/malformed.json \
	  $(BIN)/python -m pytest -q -s -p no:xdist tests/contracts/test_stateful.py \
	  tests/contracts/test_malformed.py

faults: setup ## kill everything in running trainings, in turn (KILLS=N, SEED=N); results in bench
	@$(BIN)/gradledger parts fetch >/dev/null
	@$(BIN)/python -m bench.faults --kills $(KILLS) --seed $(SEED) --out bench/results/faults.json

test-torch: setup-torch ## the tests that need PyTorch
	@$(BIN)/gradledger parts fetch >/dev/null
	@.venv-torch/bin/python -m pytest -q -k torch tests/device tests/demo $(ARGS)

lint: setup ## ruff: format and rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: setup ## mypy
	@$(BIN)/mypy

format: setup ## let ruff format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

contracts: setup ## compile the contracts into eosio_contracts/artifacts, byte for byte
	@$(BIN)/gradledger parts fetch --contracts >/dev/null
	@$(BIN)/python eosio_contracts/build.py

check-contracts: setup ## fail unless the contracts compile to the committed bytes
	@$(BIN)/gradledger parts fetch --contracts >/dev/null
	@$(BIN)/python eosio_contracts/build.py --check

check-kernels: ## check the C of Paillier by a program of its own (CC=..., FLAGS=..., RUN="qemu-aarch64")
	@mkdir -p build
	@$(CC) -std=gnu11 -O2 -ffp-contract=off $(FLAGS) -o build/selftest gradledger/paillier/csrc/*.c
	@$(RUN) build/selftest tests/vectors/paillier_kernels.txt

bench: setup ## measure what bench/results has; the benches say what they measured
	@set -e; for one in "contract --samples 200" chain "fleet --devices 10,100,1000,10000" paillier \
	  device demo privacy summing lots regression; do \
	  echo "bench.$$one"; $(BIN)/python -m bench.$$one --out bench/results/$${one%% *}.json; done

bench-csves: setup ## the paper's tables and figures, and what is refused, on MNIST (DATA=DIR)
	@$(BIN)/python -m bench.csves --grid --data $(DATA) --out bench/results/csves.json
	@$(BIN)/python -m bench.csves_figures --data $(DATA) --out bench/results
	@$(BIN)/python -m bench.refusals --data $(DATA) --out bench/results/refusals.json

lock: setup ## resolve requirements/*.in anew (needs uv)
	@set -e; for one in build dev interop; do \
	  uv pip compile --quiet --universal --generate-hashes --python-version 3.10 --no-header \
	    --no-emit-index-url --no-emit-find-links --upgrade \
	    --output-file requirements/$$one.lock requirements/$$one.in; done

clean: ## remove what setup and the tools made
	@rm -rf $(VENV) .venv-interop .venv-torch .venv-tenseal build dist *.egg-info \
	  .mypy_cache .ruff_cache .pytest_cache
