# make train: everything from a fresh clone to a trained language model.
# make test:  everything CI runs.

# The Pythons that there is a lock file for, the newest first.
PYTHONS := 3.14 3.13 3.12 3.11
# What the locked environments contain beyond the requirements.
EXTRAS := text tagging forecasting translation summarization speech dev
# The first of them on the path that runs and can make an environment: pyenv has
# commands of versions that are not active, and Debian a Python without ensurepip.
ifndef PYTHON
PYTHON := $(shell for p in python3 $(PYTHONS:%=python%); do \
  $$p -c 'import ensurepip, sys, venv; \
  sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split())' \
  2>/dev/null && echo $$p && break; done)
endif
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/pydoc
LOCK = requirements/py$(shell $(PYTHON) -c 'import sys; \
  print("%d%d" % sys.version_info[:2])' 2>/dev/null).txt

.PHONY: train test lint unit laws mutants faults layouts sanitize tpu-compile \
  tpu-costs benchmark-loop audit lock clean

train: $(VENV)/installed
	$(BIN)/python -m experiments.language_model --workdir=$(WORKDIR)

test: lint unit

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# As a user with one CPU has it; then what needs several devices.
unit: $(VENV)/installed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --dist worksteal
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --dist worksteal --devices=8

# Every law for every cell, and every cell trained; about an hour.
laws: $(VENV)/installed
	RECURRENT_ALL_LAWS=1 JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 \
	  --dist worksteal tests/cells/laws_test.py tests/kernels/tpu_test.py \
	  tests/experiments/language_model_test.py
	RECURRENT_ALL_LAWS=1 JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 \
	  --dist worksteal --devices=8 tests/kernels/gpu_test.py

# Known faults put into cells and executors: does a test notice?
mutants: $(VENV)/installed
	$(BIN)/python -m tests.mutation

# Twenty runs killed at random instants, every call of a save made to fail or to
# kill, and a table of all faults (docs/reliability.md); about an hour.
faults: $(VENV)/installed
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.experiments.interruption_test --trials=20
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.training.disk
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.faults

# Checkpoints of all layouts of devices and processes, restored on all layouts;
# about five minutes.
layouts: $(VENV)/installed
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.experiments.layouts_test

# 10,000 random calls of the loops in C++ under AddressSanitizer and UBSan; some
# minutes, most of them for the compiler.
sanitize: $(VENV)/installed
	$(BIN)/python -m tests.kernels.cpu_fuzz --tries=10000

# The TPU kernels through libtpu's compiler, without a TPU; about ten minutes,
# and 700 MB for libtpu, which stays apart from the environment.
tpu-compile: $(VENV)/libtpu
	JAX_PLATFORMS=cpu PYTHONPATH=$(VENV)/libtpu $(BIN)/python -m pytest -s \
	  tests/executors/tpu_compile_test.py tests/experiments/plan_test.py

# XLA's cost analysis of layers compiled for TPUs, without a TPU.
tpu-costs: $(VENV)/libtpu
	PYTHONPATH=$(VENV)/libtpu $(BIN)/python -m experiments.benchmark \
	  --suite=accelerator --compile_for=v5e:2x2,v6e:2x2

# The version is the one that jax asks for.
$(VENV)/libtpu: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ "$$( \
	  $(BIN)/python -c 'from importlib.metadata import requires; \
	  print(next(r.split(";")[0] for r in requires("jax") \
	  if r.startswith("libtpu")))')"

# What the training loop costs over the bare step, and generation speed.
benchmark-loop: $(VENV)/installed
	$(BIN)/python -m experiments.benchmark --suite=loop,generation

# Known vulnerabilities of the locked packages; needs a network. pip-audit stays
# apart from the environment.
audit: $(VENV)/audit
	$(VENV)/audit/bin/pip-audit --require-hashes --disable-pip -r $(LOCK)

$(VENV)/audit: $(VENV)/installed
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet pip-audit

$(VENV)/installed: $(wildcard requirements/py*.txt) setup.cfg
	@test -f "$(LOCK)" || { \
	  echo "$(if $(PYTHON),$(PYTHON) does not run or is not one of,There is no \
	    Python with ensurepip (Debian: python3-venv) on the path of) the" \
	    "versions $(PYTHONS)." >&2; \
	  echo "Say where one is: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Needs uv; writes the lock files anew from setup.cfg.
lock:
	set -e; for v in $(PYTHONS); do \
	  uv pip compile --quiet --upgrade setup.cfg $(EXTRAS:%=--extra %) \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    --python-version $$v -o requirements/py$$(echo $$v | tr -d .).txt; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info
