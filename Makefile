# Everything a developer runs. Needs CPython, git, make and a package registry; the rest is set up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := sagewai_ops commands fixtures tests .ci $(wildcard migrations)

.DEFAULT_GOAL := help
.PHONY: help setup test lint types build demo bench interop clean

help:  ## Show the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## Make the environment.

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev --editable . -c constraints.txt
	@touch $@

test: setup  ## Run the tests.
	$(BIN)/pytest -q -n 2

lint: setup  ## Check style and formatting.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: setup  ## Check types.
	$(BIN)/mypy

build: setup  ## Build sdist and wheel, and compare the wheel with git's file list.
	rm -rf dist build
	@$(BIN)/python -m build --outdir dist . >/tmp/sagewai-ops-build.log 2>&1 || { cat /tmp/sagewai-ops-build.log; exit 1; }
	$(BIN)/python .ci/check_wheel.py dist

demo: setup  ## Back up a home that is being written to, restore it beside, compare.
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python fixtures/demo.py

bench: setup  ## Measure against the peers that are installed; prints ratios.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check psutil
	$(BIN)/python tests/benchmarks/bench_backup.py

include tests/interop/interop.mk

clean:  ## Remove what the targets made.
	rm -rf $(VENV) .interop dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
