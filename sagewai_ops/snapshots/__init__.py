"""Snapshots of homes: taking them, listing them, bringing them back."""
