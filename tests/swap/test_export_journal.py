"""Exports killed between their commit on the server and the record of it in the home."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from postgres_server import Server
from program import Answer, call
from sagewai_ops.database.postgres import transaction
from sagewai_ops.errors import LockedError, OpsError, RemoteError, TargetBusyError
from sagewai_ops.export import target_session
from sagewai_ops.export.export import Options, export
from sagewai_ops.fs import journal as fs_journal
from sagewai_ops.home.paths import Home
from sagewai_ops.home.server_record import PLACE, read_server_record
from sagewai_ops.swap import export_journal, pending
from small_homes import everything_of
from step_counter import killed
from targets import at_head, copy_of, counts_of, exported, home_with, url_of

_COMMIT = target_session._commit


async def _die(*_arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _commit_and_die(*arguments: object) -> None:
    await _COMMIT(*arguments)  # type: ignore[arg-type]
    await _die()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A small home."""
    return home_with(tmp_path_factory.mktemp("original") / "home")


@pytest.fixture
def home(original: Home, tmp_path: Path) -> Home:
    """A copy of it for one test."""
    return copy_of(original, tmp_path / "home")


def kill(home: Home, server: Server, database: str, commit: Callable[..., object]) -> Path:
    """Kill an export at its commit, and return its journal."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target_session, "_commit", commit)
            exported(home, server, database)

    assert killed(run)
    (path,) = export_journal.journals(home.root)
    return path


def recover(home: Home, server: Server, database: str, *words: object) -> Answer:
    """Recover the home, with the URL in a file."""
    file = home.root.with_name("url")
    file.write_text(server.url(database))
    file.chmod(0o600)
    return call("--home", home.root, "recover", "--url-file", file, *words)


def rewrite(path: Path, part: str, **fields: str) -> None:
    """Change fields of a journal."""
    document = json.loads(path.read_text())
    document["content"][part] |= fields
    path.write_text(json.dumps(document))


def test_killed_after_the_commit_it_is_completed(home: Home, every_postgres: Server) -> None:
    """Other commands refuse until `recover` has asked the server and recorded it."""
    database = at_head(every_postgres)
    path = kill(home, every_postgres, database, _commit_and_die)

    status = call("--home", home.root, "status", "--json")
    refused = call("--home", home.root, "backup")
    answer = recover(home, every_postgres, database, "--json")

    assert status.result["interrupted_export"] is True
    assert refused.code == 11
    assert f"home {home.root}: export pending" in refused.err
    assert answer.code == 0, answer.err
    (recovery,) = answer.result["recovered"]
    assert (recovery["operation"], recovery["outcome"]) == ("export", "completed")
    record = read_server_record(home.root)
    assert record
    assert record.database == database
    assert not path.exists()
    assert exported(home, every_postgres, database, purpose="verify").exit_code == 0


def test_killed_before_the_commit_arrived_it_is_rolled_back(
    home: Home, every_postgres: Server
) -> None:
    """The home is as before, and so is the server."""
    database = at_head(every_postgres)
    before = everything_of(home.root)
    kill(home, every_postgres, database, _die)

    answer = recover(home, every_postgres, database, "--json")

    assert answer.code == 0, answer.err
    (recovery,) = answer.result["recovered"]
    assert (recovery["outcome"], recovery["reason"]) == (
        "rolled back",
        "not committed on the server",
    )
    after = everything_of(home.root)
    del after["db"], before["db"]  # its time
    assert after == before
    assert counts_of(every_postgres, database) == {}


def test_the_next_export_settles_it_first(home: Home, postgres: Server) -> None:
    """A committed one is recorded, and the target then is not empty; the other is repeated."""
    committed, other = at_head(postgres), at_head(postgres)
    kill(home, postgres, committed, _commit_and_die)
    with pytest.raises(TargetBusyError, match="not empty"):
        exported(home, postgres, committed)
    assert read_server_record(home.root)
    (home.root / PLACE).unlink()

    kill(home, postgres, other, _die)
    assert exported(home, postgres, other).committed
    assert export_journal.journals(home.root) == []


@pytest.mark.parametrize("options", [{"purpose": "verify"}, {"purpose": "plan"}])
def test_what_only_reads_leaves_the_journal(
    home: Home, postgres: Server, options: dict[str, str]
) -> None:
    """A comparison and a plan change nothing; neither writes one."""
    database = at_head(postgres)
    path = kill(home, postgres, database, _commit_and_die)

    words = ("--verify-only",) if options["purpose"] == "verify" else ("--plan",)
    call("--home", home.root, "export-to-postgres", postgres.url(database), *words)

    assert export_journal.journals(home.root) == [path]
    assert not (home.root / PLACE).exists()


def test_rehearsal_writes_neither_journal_nor_record(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are not those that the home will use."""
    written: list[object] = []
    monkeypatch.setattr(fs_journal, "recording", written.append)
    before = everything_of(home.root)

    assert exported(home, postgres, at_head(postgres), allow_live=True).committed

    assert written == []
    after = everything_of(home.root)
    del after["db"], before["db"]  # its time
    assert after == before


def test_commit_that_the_server_has_not_finished(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a standby after its client was killed: 11 until then, afterwards completed."""
    database = at_head(postgres)
    url = replace(url_of(postgres, database), settings={"synchronous_commit": "on"})
    monkeypatch.setattr(export_journal, "WAIT_SECONDS", 0.2)

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target_session, "_commit", stall)
            export(home, url, Options())

    async def stall(_session: object, committing: object) -> None:
        import asyncio

        waiting = asyncio.ensure_future(committing)  # type: ignore[call-overload]
        await asyncio.wait({waiting}, timeout=0.5)
        await _die()

    postgres.run("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    postgres.run("postgres", "SELECT pg_reload_conf()")
    try:
        assert killed(run)
        with pytest.raises(LockedError, match="has not ended"):
            export_journal.settle(home, url)
        assert export_journal.journals(home.root)
    finally:
        postgres.run("postgres", "ALTER SYSTEM RESET synchronous_standby_names")
        postgres.run("postgres", "SELECT pg_reload_conf()")
    assert recover(home, postgres, database).code == 0
    assert read_server_record(home.root)


def test_server_that_is_away_or_another(home: Home, postgres: Server) -> None:
    """19 and 2, each with a hint, and the journal stays."""
    database = at_head(postgres)
    path = kill(home, postgres, database, _commit_and_die)

    away = call(
        "--home", home.root, "recover", "--url-file", _file(home, "postgresql://localhost:1/d")
    )
    unnamed = call("--home", home.root, "recover")
    rewrite(path, "transaction", system="1")
    other = recover(home, postgres, database)

    assert [answer.code for answer in (away, unnamed, other)] == [19, 2, 2], (away, unnamed, other)
    assert "export pending" in away.err
    assert f"rm {path}" in away.err
    assert "neither SAGEWAI_DATABASE_URL nor DATABASE_URL is set" in unnamed.err
    assert "not the server of transaction" in other.err
    assert export_journal.journals(home.root) == [path]


def _file(home: Home, url: str) -> Path:
    file = home.root.with_name("url")
    file.write_text(url)
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(
    ("number", "database"), [("9000000000000", ""), ("", "4294967294")], ids=["future", "dropped"]
)
def test_transaction_that_the_server_does_not_have(
    home: Home, postgres: Server, number: str, database: str
) -> None:
    """The server was restored to an earlier moment, or the database was dropped: rolled back."""
    target = at_head(postgres)
    path = kill(home, postgres, target, _commit_and_die)
    fields = {"number": number, "database": database}
    rewrite(path, "transaction", **{name: text for name, text in fields.items() if text})

    answer = recover(home, postgres, target)

    assert answer.code == 0, answer.err
    assert not (home.root / PLACE).exists()
    assert export_journal.journals(home.root) == []


def test_outcome_that_the_server_has_forgotten(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1 with the way to decide it by hand."""
    database = at_head(postgres)
    path = kill(home, postgres, database, _commit_and_die)
    monkeypatch.setattr(export_journal, "is_committed", lambda *_arguments: None)

    with pytest.raises(OpsError, match="too long ago") as raised:
        pending.recover(home, {"SAGEWAI_DATABASE_URL": postgres.url(database)}, pending.EXPORT)

    assert f"rm {path}" in raised.value.hint


def test_lost_answer_to_the_commit_is_found_out(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """19; committed is recorded, not committed leaves nothing, unknown leaves the journal."""

    async def lose(session: object, committing: object) -> None:
        await _COMMIT(session, committing)  # type: ignore[arg-type]
        session.committed = False  # type: ignore[attr-defined]
        raise transaction.UnknownOutcomeError(transaction.LOST)

    async def cut(session: target_session.Session, committing: object) -> None:
        committing.close()  # type: ignore[attr-defined]
        session.connection.terminate()
        raise transaction.UnknownOutcomeError(transaction.LOST)

    database = at_head(postgres)
    monkeypatch.setattr(target_session, "_commit", cut)
    with pytest.raises(RemoteError, match="lost during the commit; nothing was changed"):
        exported(home, postgres, database)
    assert not (home.root / PLACE).exists()
    assert export_journal.journals(home.root) == []

    monkeypatch.setattr(target_session, "_commit", lose)
    with pytest.raises(RemoteError, match="lost during the commit; everything is committed"):
        exported(home, postgres, database)
    assert read_server_record(home.root)
    assert export_journal.journals(home.root) == []

    def refuse(*_arguments: object) -> bool:
        raise RemoteError("no answer")

    (home.root / PLACE).unlink()
    monkeypatch.setattr("sagewai_ops.export.export.is_committed", refuse)
    with pytest.raises(RemoteError, match="committed or not, unknown") as raised:
        exported(home, postgres, at_head(postgres))
    assert raised.value.hint.endswith("recover --url-file FILE")
    assert len(export_journal.journals(home.root)) == 1


def test_record_that_is_refused_after_the_commit(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export succeeds with a warning, and `recover` writes the record."""
    database = at_head(postgres)

    def refuse(*_arguments: object) -> bool:
        raise OpsError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(export_journal, "write_server_record", refuse)
        report = exported(home, postgres, database)

    assert report.committed
    assert any("sagewai-ops recover writes it" in warning for warning in report.warnings)
    assert recover(home, postgres, database).code == 0
    assert read_server_record(home.root)


def test_journal_that_cannot_be_written_stops_the_export(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the commit: nothing is changed."""
    database = at_head(postgres)

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OpsError("refused")

    monkeypatch.setattr(fs_journal, "recording", refuse)
    with pytest.raises(OpsError, match="refused"):
        exported(home, postgres, database)

    assert counts_of(postgres, database) == {}
    assert not (home.root / PLACE).exists()


def test_role_that_may_not_read_the_identifier(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction is found by its number alone."""
    monkeypatch.setattr(transaction, "_MAY_IDENTIFY", "SELECT false")
    database = at_head(postgres)
    path = kill(home, postgres, database, _commit_and_die)

    assert json.loads(path.read_text())["content"]["transaction"]["system"] == ""
    assert recover(home, postgres, database).code == 0
    assert read_server_record(home.root)


def test_journal_of_another_form_is_unusable(home: Home, postgres: Server) -> None:
    """It is pending, and nothing is done with it."""
    path = kill(home, postgres, at_head(postgres), _commit_and_die)
    rewrite(path, "transaction", number="1; DROP TABLE x")

    with pytest.raises(OpsError, match="unusable"):
        export_journal.settle(home, url_of(postgres, "postgres"))
    with pytest.raises(LockedError, match="export pending"):
        pending.require_settled(home.root)
