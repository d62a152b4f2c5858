"""The SQLite file: reading, copying, checking, writing."""
