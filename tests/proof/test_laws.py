"""Laws over generated homes: cut snapshots, upgrades done twice, keys exchanged.

`test_properties` has restore(backup(home)) == home and the flipped bit, `test_transfer_encoders`
every storage class through every type of a server.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyrage
from cryptography.fernet import Fernet, InvalidToken
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from home_builder.recipe import HEAD
from memory_directory import memory_directory
from program import call, taken
from proof.worlds import read_database
from sagewai_ops.schema.revision_graph import revisions
from small_homes import rows_of, small

_TOKEN = re.compile(rb"gAAAAA[A-Za-z0-9_-]{54,}={0,2}")
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
        "journal": st.sampled_from(["everything", "tail", "none"]),
        "own_table": st.booleans(),
        "orphans": st.sampled_from([0, 2]),
    }
)


@settings(QUICK, max_examples=25)
@given(data=st.data())
def test_any_truncation_of_a_snapshot_is_refused(data: st.DataObject) -> None:
    """However much is missing at the end, clear or encrypted, it is no snapshot any more."""
    snapshot, content = data.draw(st.sampled_from(_SNAPSHOTS.contents()))
    size = data.draw(st.integers(0, len(content) - 1))
    with memory_directory() as directory:
        (directory / "identity").write_text(str(_SNAPSHOTS.identity))
        cut = directory / snapshot
        cut.write_bytes(content[:size])

        answer = call("snapshots", "verify", cut, "--identity", directory / "identity")

    assert answer.code in (12, 16, 18), (size, answer.err)


@settings(QUICK, max_examples=8)
@given(recipe=RECIPES, revision=st.sampled_from([each for each in revisions() if each != HEAD]))
def test_an_upgrade_done_twice_is_an_upgrade_done_once(
    recipe: Mapping[str, Any], revision: str
) -> None:
    """The second changes nothing at all, and the first kept every value of every row."""
    with memory_directory() as directory:
        built = small(directory / "home", revision=revision, **recipe)
        before = rows_of(built.database)
        words = ("--home", built.root, "db", "upgrade", "--no-snapshot", "--json")

        once = call(*words)
        first = read_database(built.database)
        twice = call(*words)

        assert (once.code, twice.code) == (0, 0), once.out + twice.out
        assert (bool(once.result["added"]), twice.result["added"]) == (True, [])
        assert read_database(built.database) == first
        after = rows_of(built.database)
        for table, rows in before.items():
            width = len(rows[0]) if rows else 0
            assert [row[:width] for row in after[table]] == rows, table


@settings(QUICK, max_examples=6)
@given(
    recipe=RECIPES,
    keys=st.integers(1, 2),
    layout=st.sampled_from(["canonical", "flat"]),
)
def test_what_a_new_key_opens_is_what_the_old_ones_opened(
    recipe: Mapping[str, Any], keys: int, layout: str
) -> None:
    """Every plaintext is the same, nothing is left under an old key, and nothing else changed."""
    with memory_directory() as directory:
        built = small(directory / "home", keys=keys, layout=layout, **recipe)
        new = Fernet.generate_key()
        (directory / "new.key").write_bytes(new)
        (directory / "other.key").write_bytes(built.master_keys[-1])
        before = _opened(_tokens(built.root), built.master_keys)

        answer = call(
            *("--home", built.root, "keys", "rotate", "--no-snapshot", "--yes", "--json"),
            *("--new-key-file", directory / "new.key", "--key-file", directory / "other.key"),
        )

        assert answer.code == 0, answer.out
        after = _opened(_tokens(built.root), [new])
        assert before[0]
        assert after == before
        assert not _opened(_tokens(built.root), built.master_keys)[0]


def _tokens(root: Path) -> Iterator[bytes]:
    """Find everything in a home that looks like a Fernet token."""
    for path in sorted(root.rglob("*")):
        if path.suffix in (".json", ".yaml") and path.is_file():
            yield from _TOKEN.findall(path.read_bytes())
    for rows in rows_of(root / "db/sagewai.db").values():
        for row in rows:
            for value in row:
                if isinstance(value, bytes):
                    yield from _TOKEN.findall(value)


def _opened(
    tokens: Iterable[bytes], keys: Iterable[bytes]
) -> tuple[Counter[bytes], Counter[bytes]]:
    """Count the plaintexts of tokens that a key opens, and the tokens that none does."""
    ciphers = [Fernet(key) for key in keys]
    plain: Counter[bytes] = Counter()
    closed: Counter[bytes] = Counter()
    for token in tokens:
        for cipher in ciphers:
            with contextlib.suppress(InvalidToken):
                plain[cipher.decrypt(token)] += 1
                break
        else:
            closed[token] += 1
    return plain, closed


class _Snapshots:
    """A clear and an encrypted snapshot for all examples, taken when the first asks."""

    def __init__(self) -> None:
        self.identity = pyrage.x25519.Identity.generate()
        self._contents: list[tuple[str, bytes]] = []

    def contents(self) -> list[tuple[str, bytes]]:
        """Return names and bytes."""
        if not self._contents:
            with tempfile.TemporaryDirectory(prefix="sagewai-ops-test-") as name:
                built = small(Path(name) / "home")
                for words in ((), ("--recipient", self.identity.to_public())):
                    archive = taken(call("--home", built.root, "backup", "--json", *words))
                    self._contents.append((archive.name, archive.read_bytes()))
        return self._contents


_SNAPSHOTS = _Snapshots()
