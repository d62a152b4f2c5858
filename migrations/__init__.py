"""The Alembic chain for PostgreSQL: the revisions of Sagewai 1.0.1, by its ids and in its order.

Each revision results in the same schema as Sagewai's revision of the same name, so that either
program can continue where the other stopped. Imports SQLAlchemy and Alembic only. Not for SQLite: a
home's database has no revisions.
"""
