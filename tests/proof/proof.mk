# Breaking the promises on purpose: docs/proof.md. Included by the Makefile.
.PHONY: fuzz live leaks attack
fuzz: setup  ## Fuzz the reader for SECONDS (60) with atheris, then try all hostile archives (10 minutes).
	@# Where atheris has no wheel for this Python, the second half alone is run.
	@if $(BIN)/python -m pip install --quiet --only-binary :all: atheris; then \
	  mkdir -p .fuzz && $(BIN)/python tests/proof/reader_fuzz.py -max_total_time=$(or $(SECONDS),60) \
	    -max_len=20000 -print_final_stats=1 -verbosity=0 .fuzz; \
	else echo "no atheris for this Python"; fi
	$(BIN)/python tests/proof/hostile.py $(or $(MUTANTS),--every)

live: setup  ## Run each command for SECONDS (30) on a home under load (5 minutes).
	$(BIN)/python tests/proof/live.py --seconds $(or $(SECONDS),30)

leaks: setup  ## Plant secrets, run every command in all WAYS, search its output and files (3 minutes).
	$(BIN)/python tests/proof/leaks.py $(if $(WAYS),--ways "$(WAYS)")

attack: setup  ## Replace names by links while root runs each command; SAMPLE=4 ONLY="restore" DISTINCT=names (2 hours).
	$(BIN)/python tests/proof/attack.py $(if $(SAMPLE),--sample $(SAMPLE),--distinct $(or $(DISTINCT),sites)) $(if $(ONLY),--only "$(ONLY)") --json attack.json
