"""The configuration file: options of the program and of its commands, as TOML.

A flag and the environment have priority over it, and it over a default. Keys are the names of
options without their dashes, tables are commands: `[backup]`, `[snapshots.prune]`. An unknown key,
a value of the wrong type, a secret, and a file that other users can write are errors for every
command: a typo must not wait for the nightly run. docs/configuration.md is for users.
"""

import codecs
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from sagewai_ops.cli.key_commands import METAVAR, is_safe_source, join_command
from sagewai_ops.cli.options import find_global
from sagewai_ops.cli.parser import FORMER_COMMANDS
from sagewai_ops.cli.remote_tables import take_remotes
from sagewai_ops.cli.settings import SNAPSHOTS_VARIABLE
from sagewai_ops.cli.variables import ACTING, FORMER_FLAGS
from sagewai_ops.errors import UsageError
from sagewai_ops.fs.beneath import OTHERS_WRITE
from sagewai_ops.fs.given_files import decode_given, open_given_file
from sagewai_ops.records import dataclass
from sagewai_ops.remote.address import is_remote
from sagewai_ops.text import shell_word

VARIABLE = "SAGEWAI_OPS_CONFIG"
# Anyone with such a URL can report for this host; a file may contain it.
SECRET_OPTIONS = ("ping-url", "notify")
_MAX_BYTES = 1 << 20  # far more than all options need: it is another file
_DIRECTORY = "sagewai-ops"
_SHOWN = 3  # sections in a hint
_NAME = "config.toml"
_SNAPSHOTS = "snapshot-directory"  # above the tables, for every command
_PLACES = ("DIR", "F", "FILE")  # metavars of options that take a path
_SECRET = re.compile(r"AGE-SECRET-KEY-|://[^/@\s]*:[^/@\s]+@")
_EVERY_KEY = f"sagewai-ops --config {os.devnull} config show  # every key, with its default"
Source = Literal["flag", "environment", "file", "default"]
_SOURCES: Mapping[Any, Source] = {
    "COMMANDLINE": "flag",
    "ENVIRONMENT": "environment",
    "DEFAULT_MAP": "file",
}


@dataclass(frozen=True, slots=True)
class Configuration:
    """The content of a file.

    Attributes:
        path: The file, or None.
        defaults: For the parser: parameter -> value, command -> the same.
        environment: Values of variables that are not set.
        remotes: The tables `[remote.NAME]`, by name.
    """

    path: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    remotes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Effective:
    """The effective value of an option.

    Attributes:
        table: The command, with dots; "" for the program.
        origin: The variable's name, the file's path, or None.
    """

    table: str
    key: str
    value: str | float | bool | list[str | float | bool] | None
    source: Source
    origin: str | None


@dataclass(frozen=True, slots=True)
class EffectiveConfiguration:
    """The effective values of options, and the configuration file; None without one."""

    file: Path | None
    values: tuple[Effective, ...]


def standard_path(environment: Mapping[str, str]) -> Path | None:
    """Return the path of the file if none is named; None for a user without home directory."""
    base = environment.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(base):  # a relative one is to be ignored: XDG Base Directory Specification
        return Path(base, _DIRECTORY, _NAME)
    user = environment.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(user):
        return None
    if sys.platform == "darwin":
        return Path(user, "Library/Application Support", _DIRECTORY, _NAME)
    return Path(user, ".config", _DIRECTORY, _NAME)


def read(
    named: Path | None, environment: Mapping[str, str], program: Callable[[], Any]
) -> Configuration:
    """Read the file that is named by the option, else by the variable, else the standard one.

    Args:
        program: Returns the root command with all options; called only if there is a file.

    Raises:
        UsageError: The file is named and missing, writable by other users, or invalid.
    """
    chosen = named or (Path(environment[VARIABLE]) if environment.get(VARIABLE) else None)
    if chosen is not None and str(chosen) == os.devnull:
        return Configuration()
    path = chosen or standard_path(environment)
    content = _content(path) if path is not None else None
    if path is None or content is None:
        if chosen is not None:
            raise UsageError(f"{chosen}: not found", hint="name another with --config FILE")
        return Configuration()
    path = path.absolute()
    values = _parsed(path, content)
    shared = values.pop(_SNAPSHOTS, None)
    remotes = take_remotes(path, values)
    defaults = _table(_Place(path, "", content), values, program(), None)
    if environment.get("SAGEWAI_HOME"):
        _drop(defaults, "home")  # the environment is stronger, also where it is Sagewai's own
    if shared is None:
        return Configuration(path, defaults, remotes=remotes)
    if not isinstance(shared, str) or not shared:
        raise UsageError(f"{path}: {_SNAPSHOTS}: not a directory's path, {shared!r}")
    variables = {SNAPSHOTS_VARIABLE: _located(path, shared)}
    return Configuration(path, defaults, variables, remotes)


def effective(context: Any, words: tuple[str, ...]) -> Iterator[Effective]:
    """Yield the value and the source of each option of the program and the commands below `words`.

    Args:
        context: Of the command line that was parsed: the file's values are in it.
        words: A command or a group; empty for all.
    """
    root = context.find_root()
    if not words:
        yield from _values(root, "", root, context)
        yield _shared_directory(root)
    yield from _below(root, (), words)


def hidden(key: str, value: Any) -> Any:
    """Return a value as it may be shown."""
    return "(hidden)" if key in SECRET_OPTIONS and value else value


@dataclass(frozen=True, slots=True)
class _Place:
    """A table of the file, for error messages."""

    path: Path
    table: str
    content: bytes = field(repr=False)

    def below(self, name: str) -> "_Place":
        """Return the place of a table within this one."""
        return _Place(self.path, f"{self.table}.{name}".strip("."), self.content)

    def wrong(self, key: str, what: str, hint: str = "") -> UsageError:
        """Return the error that names the line, the table and the key."""
        where = f"[{self.table}] {key}" if self.table else key
        line = self._line(key)
        return UsageError(f"{self.path}:{line}: {where}: {what}", hint=hint or _EVERY_KEY)

    def _line(self, key: str) -> int:
        """Find the line that a key ends on: the first with which it can be read."""
        words = [*filter(None, self.table.split(".")), key]
        lines = self.content.decode("utf-8").splitlines()
        for number in range(1, len(lines)):
            try:
                value: Any = _toml("\n".join(lines[:number]))
                for word in words:
                    value = value[word]
            except (ValueError, LookupError, TypeError):
                continue
            return number
        return len(lines)


def _content(path: Path) -> bytes | None:
    """Read a file that no other user can write; None if it does not exist."""
    try:
        descriptor = open_given_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if not os.access(path.parent, os.X_OK):
            return None  # HOME is another user's, as under `sudo -u`: nothing of ours is there
        reason = (error.strerror or "refused").lower()
        raise UsageError(f"{path}: {reason}", hint=f"ls -l {shell_word(path)}") from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise UsageError(f"{path}: not a file", hint="name another with --config FILE")
    with open(descriptor, "rb") as stream:
        if facts.st_uid not in (0, os.geteuid()):
            raise UsageError(
                f"{path}: owned by uid {facts.st_uid}",
                hint=f"chown {os.geteuid()} {shell_word(path)}",
            )
        if facts.st_mode & OTHERS_WRITE:
            raise UsageError(
                f"{path}: mode {stat.S_IMODE(facts.st_mode):04o} lets others write",
                hint=f"chmod go-w {shell_word(path)}",
            )
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UsageError(f"{path}: over {_MAX_BYTES} bytes, not a configuration")
    return content.removeprefix(codecs.BOM_UTF8)


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        return _toml(decode_given(content, f"{path}: not TOML"))
    except ValueError as error:  # also of UTF-8 and of TOML
        raise UsageError(f"{path}: not TOML, {str(error).lower()}") from error


def _toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    values: dict[str, Any] = tomllib.loads(text)
    return values


def _table(place: _Place, values: Mapping[str, Any], command: Any, above: Any) -> dict[str, Any]:
    """Check one table, and return it as the parser's defaults."""
    name = place.table.rpartition(".")[2]
    # Without arguments and environment: the context is needed for conversion only.
    context = command.make_context(name, [], parent=above, resilient_parsing=True)
    options = _options(command)
    commands = getattr(command, "commands", {})
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = FORMER_COMMANDS.get(key, key)
        if name in commands and isinstance(value, dict):
            below = _table(place.below(key), value, commands[name], context)
            found[name] = {**found.get(name, {}), **below}
        elif key in SECRET_OPTIONS and value not in ("", []):
            raise place.wrong(key, "secrets are not allowed", f"use {key}-file")
        elif f"--{key}" in ACTING and _has_flag(command, f"--{key}"):
            words = " ".join(("sagewai-ops", *place.table.split("."), f"--{key}"))
            raise place.wrong(key, "accepted on the command line only", words)
        elif key not in options:
            raise _unknown(place, key, [*options, *commands], context.find_root().command)
        else:
            option = options[key]
            if option.name in found:
                raise place.wrong(key, "set twice, under a former name too")
            found[option.name] = _checked(place, key, value, option, context)
    return found


def _command(place: _Place, key: str, value: Any) -> Any:
    """Check where a command comes from; return a list of its words as one text."""
    if not is_safe_source(place.path):
        directory = shell_word(place.path.parent)
        raise place.wrong(
            key,
            "a command, in a file that another user can replace",
            f"ls -ld {shell_word(directory)}",
        )
    if not isinstance(value, list):
        return value
    try:
        return join_command(value)
    except ValueError as error:
        raise place.wrong(key, str(error)) from None


def _has_flag(command: Any, flag: str) -> bool:
    return any(flag in option.opts for option in command.params)


def _drop(defaults: dict[str, Any], name: str) -> None:
    """Remove a parameter from a table and those below it."""
    defaults.pop(name, None)
    for below in defaults.values():
        if isinstance(below, dict):
            _drop(below, name)


def _options(command: Any) -> dict[str, Any]:
    """Map each key that a command's table may have to its option, former names included."""
    keys = {}
    for key, option in _settable(command):
        former = FORMER_FLAGS.get(f"--{key}")
        keys[key] = option
        keys |= {flag[2:]: option for flag in (*option.opts, former) if flag and flag[:2] == "--"}
    return keys


def _settable(command: Any) -> Iterator[tuple[str, Any]]:
    """Yield each option that has a variable, except for the file's own, by its key."""
    for option in command.params:
        if option.param_type_name == "option" and option.envvar and option.name != "config":
            yield next(flag[2:] for flag in option.opts if flag.startswith("--")), option


def _unknown(place: _Place, key: str, known: list[str], program: Any) -> UsageError:
    import difflib

    right = [section for section in _sections(program, key) if section != place.table]
    if right:
        shown = ", ".join(f"[{section}]" if section else "the top" for section in right[:_SHOWN])
        return place.wrong(key, "in the wrong section", f"move it to {shown}")
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"
    return place.wrong(key, "unknown", hint)


def _sections(command: Any, key: str, table: str = "") -> Iterator[str]:
    """Yield the tables in which a key is an option, from the program down."""
    if key in _options(command):
        yield table
        if not table:
            return  # a global option
    for name, below in getattr(command, "commands", {}).items():
        yield from _sections(below, key, f"{table}.{name}".strip("."))


def _checked(place: _Place, key: str, value: Any, option: Any, context: Any) -> Any:
    """Check a value against its option's type; make paths absolute."""
    import typer

    if option.metavar == METAVAR:
        value = _command(place, key, value)
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not option.multiple:
        raise place.wrong(key, "takes one value, not a list")
    kind = _kind(option)
    for item in values:
        # A boolean is a number in Python, but not here.
        if type(item) not in {"truth": (bool,), "number": (int, float)}.get(kind, (str,)):
            wanted = "true or false" if kind == "truth" else f"a {kind}"
            raise place.wrong(key, f"not {wanted}, {item!r}")
        if isinstance(item, str) and _SECRET.search(item):
            raise place.wrong(key, "secrets are not allowed", "name a file")
    if option.metavar in _PLACES:
        values = [_located(place.path, item) for item in values]
    ready = values if option.multiple else values[0]
    try:
        option.process_value(context, ready)
    except typer.BadParameter as error:
        message = error.message[:1].lower() + error.message[1:].rstrip(".")
        raise place.wrong(key, message) from error
    return ready


def _kind(option: Any) -> str:
    """Return the type of an option: `truth`, `number` or `text`.

    Typer's versions keep the type in one of two places.
    """
    if option.is_flag:
        return "truth"
    if descriptor := getattr(option, "type_descriptor", None):
        return "number" if re.search(r"\b(int|float)\b", str(descriptor.annotation)) else "text"
    return "number" if re.match(r"int|float", option.type.name) else "text"


def _located(file: Path, text: str) -> str:
    """Return an absolute path, relative to the directory of the file."""
    if text in ("", "-") or is_remote(text):
        return text
    return os.path.join(file.parent, os.path.expanduser(text))


def _below(context: Any, at: tuple[str, ...], words: tuple[str, ...]) -> Iterator[Effective]:
    for word, command in getattr(context.command, "commands", {}).items():
        here = (*at, word)
        if words[: len(here)] != here[: len(words)]:
            continue
        inner = command.make_context(word, [], parent=context, resilient_parsing=True)
        if not hasattr(command, "commands"):
            yield from _values(inner, ".".join(here), context.find_root())
        yield from _below(inner, here, words)


def _shared_directory(root: Any) -> Effective:
    directory = root.obj.environment.get(SNAPSHOTS_VARIABLE) or None
    if os.environ.get(SNAPSHOTS_VARIABLE):
        return Effective("", _SNAPSHOTS, directory, "environment", SNAPSHOTS_VARIABLE)
    if directory:
        return Effective("", _SNAPSHOTS, directory, "file", str(root.obj.configuration_path))
    return Effective("", _SNAPSHOTS, None, "default", None)


def _values(context: Any, table: str, root: Any, line: Any = None) -> Iterator[Effective]:
    """Yield the values of the options of one command.

    Args:
        line: The context of the whole line, for the program's own options.
    """
    for key, option in _settable(context.command):
        is_global = table and any(option.name == shared.name for shared in root.command.params)
        value, found = context.params.get(option.name), context.get_parameter_source(option.name)
        if line is not None:
            value, found = find_global(line, option.name)
        source = _SOURCES.get(getattr(found, "name", found), "default")
        # The global options are shown once, unless a table of the file sets one.
        if is_global and source != "file":
            continue
        shown = hidden(key, _plain(value))
        yield Effective(table, key, shown, source, _origin(option, source, root))


def _origin(option: Any, source: str, root: Any) -> str | None:
    if source == "environment":
        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
        return next((name for name in names if os.environ.get(name)), None)
    if source == "file":
        return str(root.obj.configuration_path)
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = getattr(value, "value", value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
