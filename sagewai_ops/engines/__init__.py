"""Repositories of restic and borg as places for snapshots."""
