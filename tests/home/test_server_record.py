"""The record of the server that a home's tables were moved to."""

import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from sagewai_ops.database.url import PostgresUrl, SqliteUrl, parse
from sagewai_ops.errors import DamagedError, UsageError
from sagewai_ops.home.paths import locate
from sagewai_ops.home.server_record import (
    PLACE,
    ServerRecord,
    read_server_record,
    record_of,
    resolve_database,
    write_server_record,
)

MOMENT = datetime(2026, 11, 29, 1, 2, 3, tzinfo=timezone.utc)


def postgres(url: str) -> PostgresUrl:
    """Parse the URL of a server."""
    parsed = parse(url)
    assert isinstance(parsed, PostgresUrl)
    return parsed


def test_record_has_no_secret(tmp_path: Path) -> None:
    """Neither user nor password nor options; private; read back as written."""
    home = locate(tmp_path, {})
    url = postgres("postgresql://ann:s3cr3t@db.example:6543,other/sagewai?sslpassword=s3cr3t")

    assert write_server_record(home, record_of(url, {}, MOMENT))

    content = (tmp_path / PLACE).read_text()
    assert "ann" not in content
    assert "s3cr3t" not in content
    assert (tmp_path / PLACE).stat().st_mode & 0o777 == 0o600
    assert read_server_record(tmp_path) == ServerRecord(
        "db.example,other", "6543,5432", "sagewai", "2026-11-29T01:02:03Z"
    )


@pytest.mark.parametrize(
    ("url", "environment", "display"),
    [
        ("postgresql://", {}, "postgresql://:5432/"),
        ("postgresql://", {"PGHOST": "a,b", "PGPORT": "1,2"}, "postgresql://a:1,b:2/"),
        ("postgresql://h/x", {"PGHOST": "a", "PGPORT": "7"}, "postgresql://h:7/x"),
        ("postgresql:///x?host=/run/pg&port=7", {}, "postgresql:///run/pg:7/x"),
    ],
)
def test_variables_complete_the_record(url: str, environment: dict[str, str], display: str) -> None:
    """As libpq completes the URL."""
    assert record_of(postgres(url), environment, MOMENT).display == display


def test_record_of_the_same_database_stays(tmp_path: Path) -> None:
    """Its time is that of the move, not of the last upgrade; another database replaces it."""
    home = locate(tmp_path, {})
    record = record_of(postgres("postgresql://h/x"), {}, MOMENT)

    assert write_server_record(home, record)
    assert not write_server_record(home, record_of(postgres("postgresql://h/x"), {}))
    assert read_server_record(tmp_path) == record
    assert write_server_record(home, record_of(postgres("postgresql://h/y"), {}))


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}', '{"version": 1, "host": 7}'])
def test_damaged_record_is_not_a_missing_one(tmp_path: Path, content: str) -> None:
    """A home whose database is unknown is not one on SQLite."""
    (tmp_path / "db").mkdir()
    (tmp_path / PLACE).write_text(content)

    with pytest.raises(DamagedError, match=r"server\.json"):
        resolve_database(locate(tmp_path, {}), {})


def test_moved_home_needs_a_variable(tmp_path: Path) -> None:
    """Without one the old SQLite file would be taken for the database."""
    home = locate(tmp_path, {})
    assert resolve_database(home, {}) == SqliteUrl(home.database)
    write_server_record(home, record_of(postgres("postgresql://h/x"), {}))

    with pytest.raises(UsageError, match=r"postgresql://h:5432/x .*SAGEWAI_DATABASE_URL"):
        resolve_database(home, {"SAGEWAI_DATABASE_URL": ""})
    assert resolve_database(home, {"DATABASE_URL": "postgresql://h/x"}) == postgres(
        "postgresql://h/x"
    )


def test_content_of_the_record_is_escaped(tmp_path: Path) -> None:
    """Who can write to the home does not write to the terminal."""
    home = locate(tmp_path, {})
    write_server_record(home, ServerRecord("\x1b[2J", "1", "x", "\x1b[2J"))

    with pytest.raises(UsageError) as raised:
        resolve_database(home, {})
    assert "\x1b" not in raised.value.message


def test_record_keeps_the_owner_of_the_directory(tmp_path: Path) -> None:
    """As root, a service's home does not get a file that the service cannot read."""
    if os.geteuid():
        pytest.skip("needs root")
    home = locate(tmp_path, {})
    os.chown(tmp_path, 12345, 12345)

    write_server_record(home, record_of(postgres("postgresql://h/x"), {}))

    assert {os.stat(tmp_path / name).st_uid for name in ("db", PLACE)} == {12345}
