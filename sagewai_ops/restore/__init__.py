"""Restore a home, or parts of one, from a snapshot."""
