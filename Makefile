# Everything runs from a fresh clone: `make train` and `make test` set themselves up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install train check test bench gpu debug kernels-report clean

install: $(STAMP)

# torch is pinned first, so that no later requirement pulls another build of it.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.py csrc/cpu/*)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %s; set PYTHON=python3.11" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	@touch $(STAMP)

train: $(STAMP)
	$(BIN)/python -m polaris_fast.train

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP)
	$(BIN)/python -m pytest

bench: $(STAMP)
	@mkdir -p benchmarks/results
	$(BIN)/python -m pytest benchmarks/ --benchmark-only -s --benchmark-json=benchmarks/results/bench.json

gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu

kernels-report: $(STAMP)
	$(BIN)/python -m polaris_kernels.backends.triton_report

debug: $(STAMP)
	$(BIN)/python -m polaris_fast.train --config debug

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
