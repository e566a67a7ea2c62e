# The only commands a fresh machine needs are `make train` and `make test`: each sets up what it uses.
PYTHON ?= python3
VENV ?= .venv
# Anything pip should be told besides, for instance where to find wheels.
PIP_FLAGS ?=
# Test processes; 1 runs in this one.
JOBS ?= 2
# The main job: FOMAML on AntVel-v0 with real physics, sized to five minutes on two fast cores.
ALGO ?= fomaml
ENV ?= AntVel-v0
TRAIN_STEPS ?= 6000000
TRAIN_FLAGS ?= --seed 0

BIN := $(VENV)/bin
STAMP := $(VENV)/.metarl-installed
SOURCES := metarl tests $(wildcard benchmarks) setup.py

.PHONY: help setup train check test lint types suite test-slow format clean distclean

help:
	@echo "make train      set up, then train $(ALGO) on $(ENV) (TRAIN_STEPS=$(TRAIN_STEPS) TRAIN_FLAGS='$(TRAIN_FLAGS)')"
	@echo "make test       set up, then lint, types and the test suite"
	@echo "make check      what CI runs (the same as make test)"
	@echo "make test-slow  the tests that learn for minutes"
	@echo "make format     rewrite the sources in the house format"
	@echo "make clean      remove caches and builds (make distclean: $(VENV) too)"

setup: $(STAMP)

# torch comes first and pinned, so that a CPU wheel of that version is taken where pip can find one (PIP_FLAGS) and nothing
# later replaces it: the index's own Linux build brings gigabytes of CUDA. Older pips search the pins for minutes.
$(STAMP): setup.py pyproject.toml constraints.txt metarl/version.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment: $(PYTHON) needs its venv module (Debian: python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install $(PIP_FLAGS) -q 'pip>=24'
	$(BIN)/python -m pip install $(PIP_FLAGS) -q -c constraints.txt torch
	$(BIN)/python -m pip install $(PIP_FLAGS) -q -c constraints.txt -e '.[dev]'
	@touch $@

train: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH"; \
	$(BIN)/python -m metarl.zoo train --algo $(ALGO) --env $(ENV) -n $(TRAIN_STEPS) $(TRAIN_FLAGS); \
	code=$$?; echo "To type such commands, first: . $(BIN)/activate"; exit $$code

check: test

test: lint types suite

lint: $(STAMP)
	$(BIN)/python -m ruff check $(SOURCES)
	$(BIN)/python -m ruff format --check $(SOURCES)

types: $(STAMP)
	$(BIN)/python -m mypy

suite: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

format: $(STAMP)
	$(BIN)/python -m ruff check --fix $(SOURCES)
	$(BIN)/python -m ruff format $(SOURCES)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find metarl tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
