# make demo | test | test-fast | test-long | check | install | clean
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
# Tests start many processes: more threads than cores only wait for each other.
test test-fast test-long: export OMP_NUM_THREADS := 1
TEST_WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(TEST_WORKERS)

.PHONY: install demo test test-fast test-long check format clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.11 install"; exit 2; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[serve,dev]'
	touch $@

demo: install
	$(BIN)/xtdist demo

test: install
	$(PYTEST) -m "not long"

test-fast: install
	$(PYTEST) -m "not long and not slow and not ray"

test-long: install
	$(PYTEST) -m "not alone"
	$(BIN)/pytest -m alone

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .demo .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
