# The real sagewai 1.0.1, in an environment of its own. Included by the Makefile, which sets
# PYTHON, VENV and the rule that makes $(VENV).
INTEROP_VENV ?= .interop/venv

.PHONY: interop
interop: setup
	@INTEROP_VENV=$(INTEROP_VENV) $(VENV)/bin/python tests/interop/environment.py > /dev/null
	@INTEROP_VENV=$(INTEROP_VENV) $(VENV)/bin/pytest --interop -m interop tests/interop -q
