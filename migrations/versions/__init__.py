"""The 21 revisions; Alembic loads them by their files."""
