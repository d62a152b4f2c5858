"""The schema of Sagewai on both engines: revisions, upgrade, checks."""
