"""The home's SQLite database as a file: its copy, its health, its users."""
