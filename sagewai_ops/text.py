"""Text for people: sizes, printable names, words for a shell."""

import os
from pathlib import Path


def printable(text: str) -> str:
    """Escape control characters and bytes that are not UTF-8, so that a name stays one line."""
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
        text = character  # half a pair, which JSON can spell and no file name has
    return text.encode("unicode_escape").decode("ascii")


def size(size_bytes: int) -> str:
    """Write a number of bytes as people read it, in powers of 1000."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def shell_word(path: Path | str) -> str:
    """Spell a path as one word of a command that a hint gives."""
    import shlex  # every start would pay for it

    return shlex.quote(os.fspath(path))
