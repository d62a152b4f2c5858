"""The Alembic chain for PostgreSQL: the revisions of Sagewai 1.0.1, by its ids and in its order.

Each revision leaves the schema that Sagewai's revision of the same name leaves, so that either
program goes on where the other stopped. Imports SQLAlchemy and Alembic only. Not for SQLite: a
home's file has no revisions, and half of this would not even compile there.
"""
