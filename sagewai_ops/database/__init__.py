"""SQLite and PostgreSQL, the two database engines of a home."""
