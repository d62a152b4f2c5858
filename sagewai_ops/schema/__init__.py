"""The schema that Sagewai's data lives in."""
