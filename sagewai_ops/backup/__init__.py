"""Create a snapshot of a home: as an archive, or as a mirror directory."""
