"""Connections to PostgreSQL: pgpass, TLS, timeouts."""
