"""The 21 revisions, which Alembic loads by file name."""
