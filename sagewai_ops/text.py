"""Text for people: printable names, sizes, words of a shell command.

Names of files, tables and roles, and messages of servers, are chosen by others: none of their
characters may control a terminal, end a line or change the direction of text.
"""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

# Control and format characters (bidirectional overrides, zero width), surrogates, line and
# paragraph separators; among them everything at which Python, systemd, cron or YAML end a line.
_UNSAFE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def has_control(text: str) -> bool:
    """Return whether a text has a character that controls a terminal, a line or a direction."""
    return not text.isprintable() and any(
        unicodedata.category(character) in _UNSAFE for character in text
    )


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


def listed(names: Sequence[str], most: int = 30) -> str:
    """Return names for a message, printable; after `most`, the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(printable, names[:most]))}{more}"


def size(size_bytes: int) -> str:
    """Return a number of bytes with its unit, in powers of 1000."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def shell_word(path: Path | str) -> str:
    """Quote a path as one word of a shell command, on one line."""
    import shlex  # not loaded at every start

    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    # In $'', of bash, zsh and ksh, because a raw control character would act on the terminal.
    return "$'" + "".join(map(_in_dollar_quotes, text)) + "'"


def _in_dollar_quotes(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
