# Everything runs from .venv, which is made on first use from Debian's python3 (>= 3.11) and python3-venv.
# A stamp in .venv remembers what is installed: a second call installs nothing, unless pyproject.toml or constraints.txt changed.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Always under the constraints. On Linux the default torch wheel brings gigabytes for GPUs; without one, set
# PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (pytorch.org, "Get started", CPU).
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
METADATA := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-long check docs bench clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo ## Install what the demo needs and run it (INSITU_NO_BROWSER=1 opens no browser)
	$(BIN)/insitu demo

# Two processes with one thread each beat one process with two, and every machine then gives the same bits.
test test-long: export OMP_NUM_THREADS := 1
test test-long: export MKL_NUM_THREADS := 1
test test-long: export OPENBLAS_NUM_THREADS := 1

test: $(VENV)/.test ## Run the tests that take seconds
	$(BIN)/python -m pytest -m "not long" -n $(JOBS)

# pytest exits with 5 where it finds no test: no long test yet is not a failure.
test-long: $(VENV)/.test ## Run the tests that take minutes
	$(BIN)/python -m pytest -m long --timeout=1800 -n $(JOBS) || [ $$? -eq 5 ]

check: $(VENV)/.dev ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.docs ## Build the documentation into site/; any warning is an error
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.test ## Time insitu against a loop by hand (benchmarks/README.md)
	$(BIN)/insitu bench simulate

clean: ## Remove what tests, checks and builds left behind (.venv stays: remove it by hand to start afresh)
	rm -rf site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	find src tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.demo: $(METADATA) | $(BIN)/python
	@echo "installing insitu with torch and plots (once; this can take minutes)"
	@$(INSTALL) -e '.[torch,plots]' || { \
	  echo "NOTICE: that did not work, perhaps because there is no torch wheel for this machine;"; \
	  echo "NOTICE: going on without torch: the demo then uses insitu's NumPy learner."; \
	  $(INSTALL) -e '.[plots]'; }
	@touch $@

$(VENV)/.test: $(METADATA) | $(BIN)/python
	$(INSTALL) -e '.[torch,plots,frames,parquet,ray,trees,postgres,otel,test]'
	@touch $@

$(VENV)/.dev: $(METADATA) | $(BIN)/python
	$(INSTALL) -e '.[torch,plots,frames,parquet,ray,trees,postgres,dev]'
	@touch $@

$(VENV)/.docs: $(METADATA) | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	@touch $@

# ensurepip is what Debian's python3 lacks without python3-venv; asking first leaves no half-made .venv behind.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "insitu needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
