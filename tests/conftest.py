"""What every test gets: PostgreSQL for those that ask for it."""

from postgres_server import _postgres_session, database, every_postgres, postgres

__all__ = ["_postgres_session", "database", "every_postgres", "postgres"]
