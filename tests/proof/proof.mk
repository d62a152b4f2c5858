# Breaking the promises on purpose: docs/proof.md. Included by the Makefile.
SECONDS ?= 60

.PHONY: fuzz
fuzz: setup  ## Fuzz the reader for SECONDS with atheris, then try every hostile archive.
	@# Where atheris has no wheel for this Python, the second half alone is run.
	@if $(BIN)/python -m pip install --quiet --only-binary :all: atheris; then \
	  mkdir -p .fuzz && $(BIN)/python tests/proof/reader_fuzz.py -max_total_time=$(SECONDS) \
	    -max_len=20000 -print_final_stats=1 -verbosity=0 .fuzz; \
	else echo "no atheris for this Python"; fi
	$(BIN)/python tests/proof/hostile.py $(or $(MUTANTS),--every)
