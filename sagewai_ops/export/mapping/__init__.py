"""Map source tables and columns to those of the target."""
