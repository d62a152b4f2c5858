"""The part of the program that commands import: parsing, settings, terminal, exit codes."""
