# Each target makes what it needs: the virtual environment, its packages, the data.
# PYTHON=python3.12 chooses the interpreter, ARGS="--full" is handed to the example or to pytest.

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)

.PHONY: help mnist mnist-one tutorial docs test test-all test-zoo test-oldest test-py fuzz bench lint format clean

help:
	@echo "make mnist     train on MNIST, fit Laplace, compare calibration (results/mnist)"
	@echo "make tutorial  the same story in JAX alone, on jax_core (results/tutorial)"
	@echo "make test      run the tests without most of the model zoo; a third of files of many cases, TURN=0, 1, 2 or all"
	@echo "make test-all  run every test, compiled as users compile"
	@echo "make test-zoo  run a third of the zoo, TURN likewise, compiled so too"
	@echo "make test-oldest, make test-py  the tests with the oldest packages allowed, and on each Python"
	@echo "make fuzz      5,000 random programs, traced and held against torch: two hours"
	@echo "make bench     ours beside the peers: an hour"
	@echo "make docs      the site, in site/: warnings and dead links are errors"
	@echo "make lint      ruff and pyright"

mnist-one: $(VENV)/.installed-examples
	$(BIN)/python examples/one_network.py $(ARGS)

mnist: $(VENV)/.installed-examples
	$(BIN)/python examples/mnist.py $(ARGS)

tutorial: $(VENV)/.installed-examples
	$(BIN)/python examples/tutorial.py $(ARGS)

# One OpenMP thread: torch's threads spin while they wait, which costs more than they bring beside JAX's own.
# A worker steals from the end of another's share, so that tests of one file, which share models, stay together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Most of the tests' time is XLA's, for programs that run for milliseconds. The same HLO passes, then machine code by
# the shortest way: half of the processor time. What that leaves out, `make test-all` and the zoo's turn compile in full.
QUICK := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false

# Files of many cases take turns, and so do architectures: the commit's hash chooses a third. Without git, the first one.
TURN ?= $(shell echo $$((0x$$(git rev-parse --short=7 HEAD 2>/dev/null || echo 0) % 3)))

test: $(VENV)/.installed-test
	@echo "Turn: $(TURN)"
	BRIDGE_TURN=$(TURN) XLA_FLAGS="$(QUICK)" $(PYTEST) -m "not zoo and not slow" $(ARGS)

test-all: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

test-zoo: $(VENV)/.installed-test
	@echo "Turn: $(TURN)"
	BRIDGE_TURN=$(TURN) $(PYTEST) -m zoo $(ARGS)

test-oldest: .venv-oldest/.installed-test
	$(MAKE) test VENV=.venv-oldest

# pip takes the newest of each package; uv can take the oldest that pyproject.toml allows.
# Made anew, since what satisfies the lower bounds would be kept.
.venv-oldest/.installed-test: pyproject.toml
	rm -rf .venv-oldest
	$(MAKE) .venv-oldest/bin/python VENV=.venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/python -m uv pip install --quiet --resolution lowest-direct --python .venv-oldest/bin/python \
		--editable '.[test]'
	@touch $@

# those on PATH, or among pyenv's
test-py:
	@for minor in 11 12 13; do \
		for python in python3.$$minor $$HOME/.pyenv/versions/3.$$minor.*/bin/python; do \
			$$python -c '' 2>/dev/null && break; python=; done; \
		test -n "$$python" || { echo "Python 3.$$minor is missing: left out"; continue; }; \
		$(MAKE) test VENV=.venv-3.$$minor PYTHON=$$python || exit 1; done

fuzz: $(VENV)/.installed-test
	BRIDGE_FUZZ_COUNT=$${BRIDGE_FUZZ_COUNT:-5000} OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest tests/bridge/tracing/test_fuzz.py --numprocesses 2 $(ARGS)

BENCHMARKS := product against_laplax fit_and_predict whole_dataset quality structures calibration large choice growth tracing

bench: $(VENV)/.installed-test
	@for name in $(BENCHMARKS); do echo; echo "## $$name"; $(BIN)/python -W ignore benchmarks/$$name.py || exit 1; done

# Nothing is fetched. Every page is read anew, so that what the last build knew hides no warning.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --quiet docs site
	$(BIN)/python scripts/check_site.py site

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* results site

# A stamp per extra: a second run installs nothing, a changed pyproject.toml installs anew.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing the '$*' packages into $(VENV) (torch and jax are large: this takes some minutes once)."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# Some systems ship Python without ensurepip; there the interpreter's own pip fills the environment.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No CPython 3.11 to 3.13 on PATH: install one, or run make PYTHON=/path/to/python."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
		&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
