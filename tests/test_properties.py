"""The laws: a snapshot returns its content, whatever the home and however it is asked."""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from program import call
from sagewai_ops.permissions.modes import directory_mode, file_mode
from small_homes import everything_of, rows_of, small

_PASSPHRASE = "a passphrase of the tests"
# An example takes a good part of a second: a failing one is shown as it came, not made smaller.
QUICK = settings(
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

RECIPES = st.fixed_dictionaries(
    {
        "seed": st.integers(1, 1000),
        "rows": st.integers(1, 3),
        "vectors": st.sampled_from([0, 5]),
        "journal": st.sampled_from(["everything", "tail", "none"]),
        "layout": st.sampled_from(["canonical", "flat"]),
        "artifacts": st.booleans(),
        "leftovers": st.booleans(),
        "small_files": st.sampled_from([0, 30]),
        "newline_names": st.booleans(),
        "undecodable_names": st.booleans(),
        "long_names": st.booleans(),
        "links_out": st.booleans(),
        "own_table": st.booleans(),
        "own_column": st.booleans(),
    }
)
# Names as bytes: whatever Linux takes, but for the places that mean something in a home.
NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
TREES = st.recursive(
    st.one_of(st.binary(max_size=3000), st.integers(0, 100_000)),
    lambda below: st.dictionaries(NAMES, below, max_size=5),
    max_leaves=15,
)


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-test-") as name:
        yield Path(name)


def _expected(
    root: Path, copy: Path, left_out: list[dict[str, Any]]
) -> dict[str, tuple[int, int, Any]]:
    """Return what a restored home must hold: modes by the rules, databases apart."""
    missing = {item["path"] for item in left_out if item["reason"] != "key"}
    found = {}
    for path, (mode, moment, content) in everything_of(root).items():
        if path in missing or path.endswith(".db"):
            continue
        rule = stat.S_IMODE(mode)
        if stat.S_ISDIR(mode):
            rule = directory_mode(path, rule)
        elif stat.S_ISREG(mode):
            rule = file_mode(path, rule)
        elif isinstance(content, str):  # a link with the home's own path names the new home's
            content = content.replace(str(root), str(copy))
        found[path] = (stat.S_IFMT(mode) | rule, moment, content)
    return found


@settings(QUICK, max_examples=6)
@given(
    recipe=RECIPES,
    custody=st.sampled_from(["exclude", "sealed"]),
    words=st.sampled_from([(), ("--compact",), ("--level", "9")]),
)
def test_a_restored_home_is_the_home_that_was_backed_up(
    recipe: Mapping[str, Any], custody: str, words: tuple[object, ...]
) -> None:
    """restore(backup(home)) == home: files, bytes, links, times, every row, and the key."""
    with _directory() as directory:
        built = small(directory / "home", **recipe)
        opening: list[object] = ["--key-file", built.master_key]
        if custody == "sealed":
            (directory / "passphrase").write_text(_PASSPHRASE)
            opening = ["--passphrase-file", directory / "passphrase"]
            words = (*words, "--key", "sealed", *opening)

        accepted = ("--accept", "linked-file")  # a link out of the home leads to a file
        taken = call("--home", built.root, "backup", "--json", *accepted, *words)
        restored = call(
            "--home",
            built.root,
            "restore",
            "latest",
            "--to",
            directory / "copy",
            "--json",
            *opening,
        )

        assert (taken.code, restored.code) == (0, 0), taken.out + restored.out
        copy = directory / "copy"
        assert rows_of(copy / "db/sagewai.db") == rows_of(built.database)
        expected = _expected(built.root, copy, taken.result["left_out"])
        came = {path: kept for path, kept in everything_of(copy).items() if ".db" not in path}
        keys = [path for path in (*expected, *came) if path.endswith("master.key")]
        assert {came[path][2] for path in keys if path in came} == {built.master_keys[0]}
        for path in keys:
            expected.pop(path, None)
            came.pop(path, None)
        # Directories that SQLite or the key's installation wrote to have another time.
        for path in ("db", "secrets"):
            expected.pop(path, None)
            came.pop(path, None)
        assert came == expected


@settings(QUICK, max_examples=10)
@given(tree=st.dictionaries(NAMES, TREES, max_size=6))
def test_any_names_and_contents_come_out_as_they_went_in(tree: Mapping[bytes, Any]) -> None:
    """extract(backup(home)) == home for whatever bytes names and files are made of."""
    with _directory() as directory:
        root = directory / "home"
        (root / "data").mkdir(parents=True)
        _write(os.fsencode(root / "data"), tree)
        (root / "config").mkdir()
        connections = root / "config/connections.json"
        connections.write_bytes(b'{"version": 1, "connections": []}')
        connections.chmod(0o600)
        before = everything_of(root)

        taken = call("--home", root, "backup", "--json")
        call("--home", root, "snapshots", "extract", "latest", "--to", directory / "out")

        assert taken.code == 0, taken.out
        assert everything_of(directory / "out") == before


def _write(directory: bytes, tree: Mapping[bytes, Any]) -> None:
    """Write bytes as files, numbers as sparse files of that size, and the rest as directories."""
    for name, content in tree.items():
        path = os.path.join(directory, name)
        if isinstance(content, bytes):
            with open(path, "wb") as file:
                file.write(content)
        elif isinstance(content, int):
            with open(path, "wb") as file:
                file.truncate(content)
        else:
            os.mkdir(path)
            _write(path, content)


@settings(QUICK, max_examples=25)
@given(data=st.data())
def test_any_flipped_bit_of_a_snapshot_is_refused(data: st.DataObject) -> None:
    """No byte of an archive is without a check."""
    content = bytearray(_ARCHIVE.content())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    with _directory() as directory:
        damaged = directory / "sagewai-20260101T000000Z-0a1b2c.tar.zst"
        damaged.write_bytes(content)

        assert call("snapshots", "verify", damaged).code in (12, 16, 18)


class _Archive:
    """One snapshot for all examples, taken when the first asks."""

    def __init__(self) -> None:
        self._content = b""

    def content(self) -> bytes:
        if not self._content:
            with _directory() as directory:
                built = small(directory / "home")
                taken = call("--home", built.root, "backup", "--json")
                self._content = Path(taken.result["archive"]).read_bytes()
        return self._content


_ARCHIVE = _Archive()
