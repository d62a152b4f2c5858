"""A Sagewai home: its paths, overrides and state files."""
