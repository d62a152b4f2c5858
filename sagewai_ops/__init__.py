"""Own the life of a Sagewai home: create it, back it up, restore it, check it, move it."""

__version__ = "0.2.0"
