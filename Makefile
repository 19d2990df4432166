# Everything runs from a fresh clone: `make train` and `make test` set themselves up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
VLLM_VENV := .venv-vllm

.PHONY: install train check test test-vllm bench gpu debug kernels-report clean

install: $(STAMP)

# torch is pinned first, so that no later requirement pulls another build of it.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.py csrc/cpu/* csrc/cuda/*)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %s; set PYTHON=python3.11" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,prepare,dev]'
	@touch $(STAMP)

train: $(STAMP)
	$(BIN)/python -m polaris_fast.train

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two tests at a time, each on one core; `pytest` alone runs them one after the other.
test: $(STAMP) $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile

# DeepSpeed is for the tests of sharded training, its operators are not built; of verl only one file
# is read, so none of its dependencies is installed.
$(VENV)/.installed-test: $(STAMP)
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/python -m pip install --quiet --constraint constraints.txt deepspeed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps verl \
	  || echo "verl was not installed: its own head is not compared with"
	@touch $@

# One more peer to compare with; without it the benchmarks run all the same and name it.
$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,prepare,dev,bench]' \
	  && touch $(BENCH_STAMP) || echo "the bench extra was not installed: cut_cross_entropy is missing"

# Real vLLM on the CPU, in an environment of its own: it is large, and pins much.
$(VLLM_VENV)/.installed: pyproject.toml $(wildcard tests/vllm/environment/*)
	PYTHON=$(PYTHON) tests/vllm/environment/install.sh $(VLLM_VENV)
	@touch $@

test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest tests/vllm

# One file of it: `make bench BENCH=benchmarks/bench_head.py`. What fails or is missing is listed at
# the end; the head's results are written all the same.
BENCH ?= benchmarks/
bench: $(BENCH_STAMP)
	@mkdir -p benchmarks/results
	$(BIN)/python -m pytest $(BENCH) --benchmark-only -s --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=benchmarks/results/bench.json; status=$$?; \
	$(BIN)/python -m benchmarks.head_table benchmarks/results/bench.json --into benchmarks/results/head; \
	exit $$status

# By the first python whose torch finds a GPU, the environment's here or PYTHON itself: a GPU machine
# with a torch of its own needs no network. Only without either is one set up (by `make`, as
# $(MAKE) would run this under -n). `make gpu ARGS="--parts head"` measures one part.
gpu:
	@for python in $(BIN)/python $(PYTHON); do \
	  if $$python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
	    PYTHONPATH=.:kernels$${PYTHONPATH:+:$$PYTHONPATH} $$python -m benchmarks.gpu $(ARGS); exit $$?; \
	  fi; \
	done; \
	make $(BENCH_STAMP) && $(BIN)/python -m benchmarks.gpu $(ARGS)

kernels-report: $(STAMP)
	$(BIN)/python -m polaris_kernels.backends.resources

debug: $(STAMP)
	$(BIN)/python -m polaris_fast.train --config debug

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
