# The real sagewai 1.0.1, in an environment of its own. Included by the Makefile, which sets VENV
# and makes it in `setup`.
INTEROP_VENV ?= .interop/venv

.PHONY: interop
interop: export INTEROP_VENV := $(INTEROP_VENV)
# The first test of each worker makes a home with the real server: minutes on a busy machine.
interop: setup  ## Test against the real sagewai 1.0.1 in its own environment (5 minutes).
	@$(VENV)/bin/python tests/interop/environment.py > /dev/null
	$(VENV)/bin/pytest -q -n 2 -o timeout=900 --interop -m interop tests/interop
