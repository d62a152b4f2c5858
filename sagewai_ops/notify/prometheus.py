"""Metrics of the last run, for node_exporter's textfile collector.

One file can serve several commands and homes: a run replaces its own samples and keeps the others.
A failure keeps the time and the result of the last success. The file is replaced atomically.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sagewai_ops.errors import EXIT_DONE, UsageError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.given_files import open_given_file, resolve_given_path
from sagewai_ops.text import printable, shell_word

PREFIX = "sagewai_ops_"
_MODE = 0o644  # read by node_exporter's user; nothing in it is secret
_MOST_BYTES = 1 << 20
_LOCK_SECONDS = 5.0  # another run locks it for milliseconds
_SAMPLE = re.compile(r"(sagewai_ops_\w+)(\{.*\}) (\S+)")
_HELP = {
    "last_run_timestamp_seconds": "End of the last run.",
    "last_run_duration_seconds": "Duration of the last run.",
    "last_run_exit_code": "Exit code of the last run: docs/exit-codes.md.",
    "last_success_timestamp_seconds": "End of the last run with exit code 0.",
}
_RESULT_HELP = "From the last run with a result: docs/json.md."


def write_metrics(
    path: Path,
    *,
    command: str,
    home: str,
    exit_code: int,
    seconds: float,
    figures: Mapping[str, float],
    ended_at: float,
) -> None:
    """Write the metrics of a run.

    Args:
        figures: Of its result; if empty, those of the previous result remain.
        ended_at: In seconds since 1970.

    Raises:
        UsageError: The file has other content; it is not changed.
        OpsError: The file cannot be written.
    """
    labels = f'{{command="{_label(command)}",home="{_label(home)}"}}'
    path = resolve_given_path(path, follow_last=False)
    # Exclude other runs, so that none loses the samples of another.
    with locks.optional_lock(path.parent, wait_seconds=_LOCK_SECONDS):
        samples = _read(path)
        ours = {
            "last_run_timestamp_seconds": ended_at,
            "last_run_duration_seconds": seconds,
            "last_run_exit_code": exit_code,
        }
        if exit_code == EXIT_DONE:
            ours["last_success_timestamp_seconds"] = ended_at
        if figures:
            old = [key for key in samples if key[1] == labels and key[0].startswith(_result(""))]
            for key in old:
                del samples[key]
        for name, value in ours.items():
            samples[PREFIX + name, labels] = _number(value)
        for name, value in figures.items():
            samples[_result(name), labels] = _number(value)
        atomic.replace(path, "".join(_lines(samples)).encode(), mode=_MODE)


def extract_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a result: its own, the lengths of its lists, and its rows."""
    figures: dict[str, float] = {}
    for name, value in result.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            figures[name] = value
        elif isinstance(value, (list, tuple)):
            figures[f"{name}_count"] = len(value)
    database = result.get("database")
    tables = database.get("tables") if isinstance(database, Mapping) else None
    if isinstance(tables, Mapping):
        figures["rows"] = sum(tables.values())
    return figures


def _result(name: str) -> str:
    return f"{PREFIX}result_{re.sub('[^a-z0-9_]', '_', name.lower())}"


def _read(path: Path) -> dict[tuple[str, str], str]:
    """Read the existing samples.

    Raises:
        UsageError: The file has other content.
    """
    foreign = UsageError(
        f"{path}: not a metrics file of sagewai-ops",
        hint=f"head {shell_word(path)}  # or another file: --metrics-file FILE",
    )
    try:
        with open(open_given_file(path), "rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return {}
    if len(content) > _MOST_BYTES:
        raise foreign
    samples = {}
    # Only a line feed ends a line; a label can contain the other line breaks of Python.
    for line in content.decode("utf-8", "replace").split("\n"):
        if line.startswith("#") or not line.strip():
            continue
        sample = _SAMPLE.fullmatch(line)
        if not sample:
            raise foreign
        samples[sample[1], sample[2]] = sample[3]
    return samples


def _lines(samples: Mapping[tuple[str, str], str]) -> Iterator[str]:
    previous = ""
    for (name, labels), value in sorted(samples.items()):
        if name != previous:
            previous = name
            yield f"# HELP {name} {_HELP.get(name.removeprefix(PREFIX), _RESULT_HELP)}\n"
            yield f"# TYPE {name} gauge\n"
        yield f"{name}{labels} {value}\n"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _label(text: str) -> str:
    """Escape the value of a label: Prometheus text format 0.0.4."""
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')
