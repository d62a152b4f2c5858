"""The 45 tables of the first revision, one module per family."""
