"""The move from a home's SQLite to PostgreSQL: planned, converted, copied, compared, committed."""
