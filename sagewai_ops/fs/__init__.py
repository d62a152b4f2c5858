"""Atomic writes, locks and temporary directories."""
