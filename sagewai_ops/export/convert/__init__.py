"""Convert SQLite values to the types of the PostgreSQL columns."""
