"""Text for people: printable names, sizes, words of a shell command."""

import os
from pathlib import Path


def printable(text: str) -> str:
    """Escape control characters and bytes that are not UTF-8, so that a name is one line."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\t" else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    try:
        text = character.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:
        text = character  # a lone surrogate, from JSON; no file name has one
    return text.encode("unicode_escape").decode("ascii")


def size(size_bytes: int) -> str:
    """Return a number of bytes with its unit, in powers of 1000."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def shell_word(path: Path | str) -> str:
    """Quote a path as one word of a shell command."""
    import shlex  # not loaded at every start

    return shlex.quote(os.fspath(path))
