"""The snapshot directory: catalog, metadata files, retention, pruning."""
