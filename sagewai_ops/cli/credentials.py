"""Recipients, identities and passphrases, as the options name them.

A passphrase comes from a file, a command, standard input or a terminal, never from an argument:
arguments are in the process list.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.archive.age import (
    Decryption,
    Encryption,
    parse_identity,
    read_identity,
    read_passphrase,
    read_recipients,
)
from sagewai_ops.cli.key_commands import IDENTITY, PASSPHRASE, automatic_command, read_command
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.fs.given_files import decode_given, read_given_file
from sagewai_ops.fs.os_errors import translate_os_errors

if TYPE_CHECKING:
    from sagewai_ops.cli.command import Run

_OF_BACKUP = "SAGEWAI_OPS_BACKUP_"


def lock_of(
    terminal: Terminal,
    recipients: Sequence[str],
    recipients_file: Path | None,
    passphrase_file: str | None,
    passphrase_command: str | None = None,
) -> Encryption | None:
    """Read how to encrypt; None for no encryption.

    Raises:
        UsageError: Recipients and a passphrase together, or a file without any.
        NotFoundError: No such file or command.
        KeyMissingError: The command failed.
    """
    everyone = (*recipients, *(read_recipients(recipients_file) if recipients_file else ()))
    if passphrase_file is None and passphrase_command is None:
        return Encryption(recipients=everyone) if everyone else None
    if everyone:
        flag = "--passphrase-file" if passphrase_command is None else "--passphrase-command"
        raise UsageError(f"{flag}: age takes a passphrase or recipients, not both")
    passphrase = _passphrase(terminal, passphrase_file, passphrase_command)
    if passphrase_file == "-" and sys.stdin.isatty() and terminal.secret("Again") != passphrase:
        raise UsageError("passphrase: the two are not the same")
    return Encryption(passphrase=passphrase)


def automatic_lock_of(
    run: "Run",
    recipients: Sequence[str],
    recipients_file: Path | None,
    passphrase_file: str | None = None,
    passphrase_command: str | None = None,
) -> Encryption | None:
    """Read how to encrypt a snapshot that another command than `backup` needs.

    Without options of its own, it is encrypted as the configuration and the variables of `backup`
    demand.

    Raises:
        UsageError, NotFoundError, KeyMissingError: As `lock_of`.
    """
    given = lock_of(run.terminal, recipients, recipients_file, passphrase_file, passphrase_command)
    if given:
        return given
    configured = (run.context.find_root().default_map or {}).get("backup") or {}
    environment = run.settings.environment
    listed = environment.get(_OF_BACKUP + "RECIPIENT", "").split() or configured.get("recipient")
    file = environment.get(_OF_BACKUP + "RECIPIENTS_FILE") or configured.get("recipients_file")
    secret = environment.get(_OF_BACKUP + "PASSPHRASE_FILE") or configured.get("passphrase_file")
    return lock_of(
        run.terminal,
        [listed] if isinstance(listed, str) else listed or [],
        Path(file) if file else None,
        str(secret) if secret and str(secret) != "-" else None,
        automatic_command(run),
    )


def unlock_of(
    terminal: Terminal,
    identities: Sequence[Path],
    passphrase_file: str | None,
    *,
    identity_command: str | None = None,
    passphrase_command: str | None = None,
    allow_work_factor: bool = False,
) -> Decryption | None:
    """Read how to decrypt; None if no option is given.

    Args:
        allow_work_factor: Accept an archive whose passphrase needs gigabytes of memory.

    Raises:
        UsageError: A file or command has no identity or an empty passphrase, or both are given.
        NotFoundError: No such file or command.
        KeyMissingError: A command failed.
    """
    if identity_command and identities:
        raise UsageError("--identity-command: contradicts --identity")
    found = [text for path in identities for text in read_identity(path)]
    if identity_command:
        name = "output of --identity-command"
        found += parse_identity(decode_given(read_command(identity_command, IDENTITY), name), name)
    if not found and passphrase_file is None and passphrase_command is None:
        return None
    return Decryption(
        identities=tuple(found),
        passphrase=_passphrase(terminal, passphrase_file or None, passphrase_command),
        allow_work_factor=allow_work_factor,
    )


def read_password(terminal: Terminal, file: str | None, command: str | None) -> str:
    """Read the password of a repository from a file or a command.

    Raises:
        UsageError: It is empty, or both are given.
        NotFoundError: No such file or command.
        KeyMissingError: The command failed.
    """
    return _passphrase(terminal, file, command)


def _passphrase(terminal: Terminal, name: str | None, command: str | None) -> str:
    if command is not None:
        if name is not None:
            raise UsageError("--passphrase-command: contradicts --passphrase-file")
        output = "output of --passphrase-command"
        return read_passphrase(decode_given(read_command(command, PASSPHRASE), output), output)
    if name is None:
        return ""
    if name != "-":
        with translate_os_errors(Path(name)):
            try:
                content = read_given_file(Path(name), private="passphrase file")
            except FileNotFoundError:
                raise NotFoundError(f"passphrase file {name}: does not exist") from None
        return read_passphrase(
            decode_given(content, f"passphrase file {name}"), f"passphrase file {name}"
        )
    if sys.stdin is None:
        raise UsageError("passphrase: standard input is closed")
    if sys.stdin.isatty():
        return read_passphrase(terminal.secret("Passphrase"), "passphrase")
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        return read_passphrase(sys.stdin.readline(), "standard input")
    # Not decoded by the locale: the same passphrase must open it everywhere.
    return read_passphrase(decode_given(stream.readline(), "standard input"), "standard input")
