# Everything a developer runs. Needs CPython, git, make and a package registry; the rest is installed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The version of cyclonedx-bom.
BOM := 7.5.0
SOURCES := sagewai_ops commands fixtures tests .ci $(wildcard migrations)
# Programs that the tests and benchmarks run next to ours, where Debian's packages can be had.
TOOLS := age zstd sqlite3 restic borgbackup pgloader openssh-client openssh-server pgbouncer gcc libc6-dev \
  mandoc zsh fish
# The emulator of Azure's blob service, from the npm registry.
AZURITE := 3.35.0
# A Python whose sqlite3 can load extensions; many cannot, and both kinds must work.
EXTENDING := $(shell for python in /usr/bin/python3 $(PYTHON); do \
  $$python -c 'import sqlite3, venv, ensurepip; sqlite3.Connection.enable_load_extension' 2>/dev/null \
  && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup tools test test-all test-rest test-extensions core lint types build release constraints demo bench proof soak \
  interop json man pictures matrix matrix-ci image image-test clean

help:  ## Show the targets, with their durations on two cores.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Compiled here as pip compiles what it installs: where Python may not write its bytecode, every start
# of the program would compile it again, and a benchmark would measure that.
setup: $(VENV)/.ready  ## Create the environment (2 minutes).
	@$(BIN)/python -m compileall -q sagewai_ops commands migrations fixtures tests

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade "pip>=25.1"
	@$(PIP) --require-hashes -r constraints.txt
	@# setuptools warns of every editable installation, in a frame of stars.
	@PYTHONWARNINGS="ignore:Editable installation" $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

constraints: setup  ## Select versions again, with hashes, for every Python; UPGRADE=--upgrade (1 minute).
	@$(PYTHON) -m venv .venv-tools && .venv-tools/bin/python -m pip install --quiet uv
	@(sed -n '/^#/p' constraints.txt; sed '/^#/d' constraints.txt > .constraints; \
	  .venv-tools/bin/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	  --no-header --no-annotate $(UPGRADE) --group dev pyproject.toml --output-file .constraints >&2; \
	  cat .constraints) > .constraints.new && mv .constraints.new constraints.txt; rm -f .constraints

test: setup  ## Run the core of the tests (3 minutes).
	$(BIN)/pytest -q -n 2 --core

test-all: setup  ## Run all tests (14 minutes).
	$(BIN)/pytest -q -n 2

test-rest: setup  ## Run the tests that are not in the core (12 minutes).
	$(BIN)/pytest -q -n 2 --rest

core: setup  ## Select the core again, by coverage, into tests/core.txt (20 minutes).
	$(BIN)/python .ci/select_core.py

test-extensions:  ## Run all tests on a Python that can load sqlite-vec (14 minutes).
	@if [ -n "$(EXTENDING)" ]; then \
	  $(MAKE) --no-print-directory test-all PYTHON=$(EXTENDING) VENV=.venv-extending; \
	else echo "no Python here can load SQLite extensions"; fi

matrix: setup  ## Run the tests on every Python, dependency, user and umask (1 hour).
	$(BIN)/python .ci/matrix.py

matrix-ci: setup  ## Run the cells of the matrix that CI runs (15 minutes).
	$(BIN)/python .ci/matrix.py --ci

tools:  ## Install the programs that the tests compare with, as root on Debian (1 minute).
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  (apt-get install -y -qq $(TOOLS) || (apt-get update -qq && apt-get install -y -qq $(TOOLS))) \
	  >/tmp/sagewai-ops-tools.log 2>&1 || echo "tools: not all could be installed"; \
	  command -v npm >/dev/null || apt-get install -y -qq nodejs npm >>/tmp/sagewai-ops-tools.log 2>&1; fi
	@# Of Debian's package prometheus: its service is not wanted.
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v promtool >/dev/null; then \
	  (cd "$$(mktemp -d)" && apt-get download -qq prometheus && dpkg -x prometheus_*.deb . \
	  && install -m 755 usr/bin/promtool /usr/local/bin/) >/tmp/sagewai-ops-promtool.log 2>&1 \
	  || echo "tools: promtool could not be installed"; fi
	@if command -v npm >/dev/null; then \
	  test "$$(cat .node/.version 2>/dev/null)" = "$(AZURITE)" || { \
	  npm install --silent --no-audit --no-fund --prefix .node "azurite@$(AZURITE)" \
	  >/tmp/sagewai-ops-npm.log 2>&1 && echo "$(AZURITE)" > .node/.version; } \
	  || echo "tools: azurite could not be installed"; fi

lint: setup  ## Check style and formatting (5 seconds).
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: setup  ## Check types (30 seconds).
	$(BIN)/mypy

build: setup  ## Build sdist and wheel, compare the wheel with git (20 seconds).
	rm -rf dist build
	@$(BIN)/python -m build --outdir dist . >/tmp/sagewai-ops-build.log 2>&1 || { cat /tmp/sagewai-ops-build.log; exit 1; }
	$(BIN)/python .ci/check_wheel.py dist

# The wheel alone in an environment of its own, so that the bill of materials lists what users install.
release: build  ## Build, and write the bill of materials and SHA256SUMS into dist/ (2 minutes).
	@rm -rf .venv-release && $(PYTHON) -m venv --without-pip .venv-release
	@# Without hashes: in constraints they would demand one of the wheel too.
	@sed -n 's/ \\$$//; /^[A-Za-z]/p' constraints.txt > .venv-release/constraints.txt
	@$(BIN)/python -m pip --python .venv-release/bin/python install --quiet \
	  -c .venv-release/constraints.txt dist/*.whl
	@$(PYTHON) -m venv .venv-tools && .venv-tools/bin/python -m pip install --quiet "cyclonedx-bom==$(BOM)"
	@.venv-tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file dist/sagewai-ops.cdx.json .venv-release/bin/python
	@cd dist && sha256sum -- *.whl *.tar.gz *.cdx.json > SHA256SUMS && cat SHA256SUMS
	@rm -rf .venv-release

demo: setup  ## Back up a home under load, restore and compare it (20 seconds).
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python fixtures/demo.py

bench: setup  ## Measure next to the peers that are installed, print ratios (45 minutes).
	@# All of them, even if one misses its goal, which is a failure.
	@status=0; for name in backup engines owner perms db drill keys export import server remote cli; do \
	  $(BIN)/python tests/benchmarks/bench_$$name.py || status=1; done; exit $$status

pictures: setup  ## Draw what a terminal shows into docs/pictures/ (20 seconds).
	$(BIN)/python fixtures/pictures.py

json: setup  ## Write docs/json/ from the dataclasses of the results (5 seconds).
	$(BIN)/python fixtures/result_schemas.py

man: setup  ## Write the manual pages from the commands and man/sections/ (5 seconds).
	$(BIN)/python fixtures/man_pages.py

proof: setup  ## Kill every command at every step, let every step fail; ONLY="restore" (hours).
	$(BIN)/python tests/proof/crash.py $(or $(FAULTS),--every) $(if $(ONLY),--only "$(ONLY)") --json proof.json

soak: setup  ## Run random histories of a home, with kills; SECONDS=120 SEED=....
	$(BIN)/python tests/proof/soak.py --seconds $(or $(SECONDS),120) $(if $(SEED),--seed $(SEED))

# TARGET=full adds restic, borg, litestream and psql; BASE=... another Python image.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image:  ## Build the image with docker, podman or buildah; PROGRAM=... names one (3 minutes).
	@program=$$(for name in $(or $(PROGRAM),docker podman buildah); do command -v $$name && break; done); \
	test -n "$$program" || { echo "image: neither docker, podman nor buildah is installed"; exit 1; }; \
	case $$program in *docker) options=;; *) options="--format docker";; esac; \
	$$program build $$options --file Containerfile --target $(or $(TARGET),sagewai-ops) \
	  $(if $(BASE),--build-arg BASE=$(BASE)) --build-arg VERSION=$(VERSION) \
	  --tag sagewai-ops:$(VERSION)$(if $(filter full,$(TARGET)),-full) .

image-test: setup  ## Build both images on Debian's packages, run them, also in podman, as root (8 minutes).
	@$(BIN)/python .ci/image_test.py

include tests/interop/interop.mk
include tests/proof/proof.mk

clean:  ## Remove everything that the targets created.
	rm -rf "/var/tmp/sagewai-ops-matrix-$$(id -u)" /var/tmp/sagewai-ops-image-*
	rm -rf $(VENV) .venv-tools .venv-release .node .interop .matrix dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
