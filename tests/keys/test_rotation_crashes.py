"""A rotation is killed, or fails, at each of its steps; the home is under one key or the other."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from home_builder import BuiltHome
from memory_directory import memory_directory
from opened_values import CLOSED, opened
from sagewai_ops.database.sqlite import in_use
from sagewai_ops.errors import NoSpaceError, OpsError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.journal import Recovery
from sagewai_ops.home.paths import OWN_PREFIX, Home, locate
from sagewai_ops.keys import rotation_journal
from sagewai_ops.operations.recover import recover_home
from sagewai_ops.operations.rotate_keys import Options, rotate
from sagewai_ops.swap.pending import KEY_ROTATION, pending_operations
from small_homes import MARK, everything_of, small
from step_counter import failing, killed, killed_at, until_done


@pytest.fixture(scope="module")
def model() -> Iterator[BuiltHome]:
    """A home that each try gets a copy of."""
    with memory_directory() as directory:
        yield small(directory / "home", journal="none", leftovers=True)


@pytest.fixture(autouse=True)
def _unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each try the search for processes, which others test."""
    monkeypatch.setattr(in_use, "find_users", lambda *_databases, **_options: ())


def values_of(home: Path, model: BuiltHome) -> list[str]:
    """Open everything with the key that is in the home."""
    if home == model.root:
        return once(home, model.master_keys[0], *model.data_keys.values())
    return opened(home, (home / "secrets/master.key").read_bytes(), model.data_keys.values())


@functools.cache
def once(home: Path, key: bytes, *data_keys: bytes) -> list[str]:
    """Open everything of the model, once for all tests."""
    return opened(home, key, data_keys)


def contents_of(home: Path) -> dict[str, bytes | str]:
    """Return a home's files without what this program keeps in it, and without times."""
    return {
        path: content
        for path, (_mode, _time, content) in everything_of(home).items()
        if not path.startswith((OWN_PREFIX, "db/"))
    }


def turn(home: Path) -> None:
    """Rotate, without a snapshot."""
    rotate(locate(home, {}), {}, Options())


def recover(home: Home, environment: dict[str, str]) -> Recovery:
    """Recover a key rotation; return the outcome."""
    report = recover_home(home, environment, kinds=[KEY_ROTATION])
    return report.recovered[-1] if report.recovered else Recovery()


def check_settled(home: Path, model: BuiltHome) -> str:
    """Recover what is left, check that all is under one key; return the recovery's answer."""
    answer = recover(locate(home, {}), {}).outcome
    assert not pending_operations(home)
    assert values_of(home, model) == values_of(model.root, model)
    names = set(contents_of(home)) - set(contents_of(model.root))
    assert not {name for name in names if not name.startswith("secrets/master.key.legacy-")}
    assert {name for name in os.listdir(home) if name.startswith(OWN_PREFIX)} <= {MARK}
    return answer


def test_the_model_has_every_place(model: BuiltHome) -> None:
    """Or the tests below would prove little: all places, and one half-written copy."""
    assert len(model.sealed_per_place) >= 6
    assert CLOSED in values_of(model.root, model)  # the copy that a crash cut short
    assert len(values_of(model.root, model)) > len(model.sealed)


def test_killed_at_any_step_it_is_under_one_key(model: BuiltHome, tmp_path: Path) -> None:
    """Finished or undone by the next run; killed before its journal, it is as it was."""
    answers = set()

    def attempt(number: int) -> bool:
        with memory_directory() as directory:
            home = directory / "home"
            shutil.copytree(model.root, home, symlinks=True)
            was_killed = killed_at(number, lambda: turn(home))
            is_pending = pending_operations(home)
            if not is_pending:  # without a word from us it must be whole already
                assert values_of(home, model) == values_of(model.root, model)
            answer = check_settled(home, model)
            assert answer == ("completed" if is_pending else "nothing to do")
            answers.add(answer)
            return was_killed

    assert until_done(attempt) > 40
    assert answers == {"completed", "nothing to do"}


@pytest.mark.parametrize("statement", ["UPDATE", "COMMIT"])
def test_killed_within_the_transaction_it_is_under_one_key(
    statement: str, model: BuiltHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two rows, and as the database commits."""
    home = tmp_path / "home"
    shutil.copytree(model.root, home)
    connect = sqlite3.connect

    def watched(*arguments: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)  # type: ignore[call-overload]
        seen: list[str] = []

        def trace(text: str) -> None:
            if text.startswith(statement):
                seen.append(text)
                if len(seen) == (3 if statement == "UPDATE" else 1):
                    os.kill(os.getpid(), signal.SIGKILL)

        connection.set_trace_callback(trace)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    assert killed(lambda: turn(home))
    monkeypatch.undo()

    assert pending_operations(home)
    assert check_settled(home, model) == "completed"


def test_failing_at_any_step_it_is_as_it_was(model: BuiltHome) -> None:
    """One call fails and the next ones work: it is undone by the same run, to the byte."""
    before = contents_of(model.root)

    def attempt(number: int) -> bool:
        with memory_directory() as directory:
            home = directory / "home"
            shutil.copytree(model.root, home, symlinks=True)
            failed = True
            with failing(number, errno.EIO):
                try:
                    turn(home)
                except OpsError:
                    assert not pending_operations(home)
                    assert contents_of(home) == before
                    assert values_of(home, model) == values_of(model.root, model)
                else:
                    failed = False
            answer = check_settled(home, model)
            assert answer == "nothing to do"
            return failed or number < 40

    until_done(attempt)


def test_on_a_disk_that_stays_full_it_is_as_it_was_or_says_how_to_go_on(model: BuiltHome) -> None:
    """Every call fails from one on: what could not be undone is finished by --recover."""
    hints = set()

    def attempt(number: int) -> bool:
        with memory_directory() as directory:
            home = directory / "home"
            shutil.copytree(model.root, home, symlinks=True)
            failed = False
            with failing(number, errno.ENOSPC, for_ever=True):
                try:
                    turn(home)
                except NoSpaceError as error:
                    failed = True
                    if pending_operations(home):
                        hints.add(error.hint.replace(str(home), "HOME"))
            check_settled(home, model)
            return failed or number < 40

    until_done(attempt)
    assert hints == {"sagewai-ops --home HOME recover"}


def test_a_recovery_that_is_killed_is_recovered(model: BuiltHome, tmp_path: Path) -> None:
    """At each of its own steps."""
    broken = tmp_path / "broken"
    shutil.copytree(model.root, broken, symlinks=True)
    killed_in_the_middle(broken)

    def attempt(number: int) -> bool:
        with memory_directory() as directory:
            home = directory / "home"
            shutil.copytree(broken, home, symlinks=True)
            was_killed = killed_at(number, lambda: recover(locate(home, {}), {}))
            check_settled(home, model)
            return was_killed

    assert until_done(attempt) > 15


def test_a_recovery_that_cannot_finish_takes_back(model: BuiltHome, tmp_path: Path) -> None:
    """The documents cannot be written again once: then nothing of them stays new."""
    home = tmp_path / "home"
    shutil.copytree(model.root, home, symlinks=True)
    killed_in_the_middle(home)

    with failing(3, errno.ENOSPC):
        recovery = recover(locate(home, {}), {})

    assert recovery.outcome == "rolled back"
    assert "no space" in recovery.reason
    assert contents_of(home) == contents_of(model.root)
    assert values_of(home, model) == values_of(model.root, model)
    assert check_settled(home, model) == "nothing to do"


def test_what_was_sealed_with_the_old_key_meanwhile_comes_along(
    model: BuiltHome, tmp_path: Path
) -> None:
    """Sagewai was started between the crash and the recovery."""
    home = tmp_path / "home"
    shutil.copytree(model.root, home, symlinks=True)
    killed_in_the_middle(home)
    late = model.sealed[0].token  # a value of the state, back under the old key
    with (home / "config/connections.json").open("a") as file:
        file.write(f"\n{late}")

    assert recover(locate(home, {}), {}).outcome == "completed"

    assert values_of(home, model).count(model.sealed[0].plaintext) == 1 + values_of(
        model.root, model
    ).count(model.sealed[0].plaintext)


def test_a_strange_key_in_the_place_is_not_overwritten(model: BuiltHome, tmp_path: Path) -> None:
    """It was put there after the crash; what it opens is unknown."""
    home = tmp_path / "home"
    shutil.copytree(model.root, home, symlinks=True)
    killed_in_the_middle(home)
    strange = b"b3RoZXIgbWFzdGVyIGtleSBvdGhlciBtYXN0ZXIga2U="
    (home / "secrets/master.key").write_bytes(strange)

    before = everything_of(home)
    with pytest.raises(OpsError, match="neither the old key nor the new one"):
        recover(locate(home, {}), {})
    assert everything_of(home) == before

    (home / "secrets/master.key").rename(home / "secrets/master.key.legacy-found")
    assert recover(locate(home, {}), {}).outcome == "completed"
    assert values_of(home, model) == values_of(model.root, model)


def test_without_the_old_key_nothing_is_rolled_back(model: BuiltHome, tmp_path: Path) -> None:
    """It was removed after the crash; the new one is the only key there is."""
    home = tmp_path / "home"
    shutil.copytree(model.root, home, symlinks=True)
    killed_in_the_middle(home)
    (home / "secrets/master.key").unlink()

    with failing(3, errno.ENOSPC), pytest.raises(NoSpaceError):
        recover(locate(home, {}), {})

    assert check_settled(home, model) == "completed"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda directory: (directory / "journal.json").write_bytes(b"{"),
        lambda directory: (directory / "journal.json").write_bytes(b'{"version": 2}'),
        lambda directory: (directory / "master.key").write_bytes(b"x" * 44),
        lambda directory: (directory / "tokens.jsonl").write_bytes(b"[1]\n"),
        lambda directory: (directory / "tokens.jsonl").unlink(),
        lambda directory: directory.chmod(0o770),
    ],
)
def test_a_journal_that_cannot_be_trusted_is_left_alone(
    spoil: Callable[[Path], object], model: BuiltHome, tmp_path: Path
) -> None:
    """Nothing is changed by a guess, and the directory with the new key stays."""
    home = tmp_path / "home"
    shutil.copytree(model.root, home, symlinks=True)
    killed_in_the_middle(home)
    spoil(home / rotation_journal.DIRECTORY)
    before = everything_of(home)

    with pytest.raises(OpsError):
        recover(locate(home, {}), {})

    assert everything_of(home) == before


def killed_in_the_middle(home: Path) -> None:
    """Leave a home with the database and one document under the new key."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:

            def replace(old: object, new: object) -> None:
                if str(new).endswith("connections.json"):
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(old, new)  # type: ignore[arg-type]

            rename = os.rename
            patch.setattr(beneath, "rename", replace)
            turn(home)

    assert killed(run)
    assert pending_operations(home)
