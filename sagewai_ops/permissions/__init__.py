"""The permission rules of a home: scan, findings, repair, undo."""
