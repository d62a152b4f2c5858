"""Export the database of a home from SQLite to PostgreSQL."""
