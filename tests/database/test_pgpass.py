"""The password file of PostgreSQL, read as libpq reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagewai_ops.database.postgres import pgpass
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import PermissionDeniedError, UsageError

URL = PostgresUrl((("db.example", 5433),), "ann", None, "sagewai")
LINES = r"""
# db.example:5433:sagewai:ann:comment
db.example:5432:sagewai:ann:other port
other:*:*:*:other host
too:short
*:5433:sagewai:ann:a\:b\\c#d
db.example:5433:sagewai:ann:second
localhost:*:*:*:by socket
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Point PGPASSFILE to the lines above."""
    path = tmp_path / "pgpass"
    path.write_text(LINES)
    path.chmod(0o600)
    return {"PGPASSFILE": str(path)}


def test_first_matching_line_wins(environment: dict[str, str]) -> None:
    """Stars match anything, and escapes are undone."""
    assert pgpass.find(URL, environment, "db.example", 5433) == r"a:b\c#d"


def test_sockets_are_found_under_localhost(environment: dict[str, str]) -> None:
    """A socket's directory is looked for by the name in the manual."""
    url = PostgresUrl((("/run/pg", None),), "bob", None, "x")

    assert pgpass.find(url, environment, "/run/pg", None) == "by socket"


def test_what_the_url_leaves_out_comes_from_the_variables(environment: dict[str, str]) -> None:
    """Host, port, user and database have their variables."""
    named = {"PGHOST": "x", "PGPORT": "5433", "PGUSER": "ann", "PGDATABASE": "sagewai"}

    assert pgpass.find(PostgresUrl(), environment | named, "x", None) == r"a:b\c#d"


def test_url_then_variable_come_before_the_file(environment: dict[str, str]) -> None:
    """The nearest wins."""
    given = environment | {"PGPASSWORD": "variable"}

    assert pgpass.find(PostgresUrl(password="url"), given, None, None) == "url"
    assert pgpass.find(URL, given, None, None) == "variable"


def test_no_line_is_no_password(environment: dict[str, str], tmp_path: Path) -> None:
    """Without a match, and without a file, the server decides."""
    stranger = PostgresUrl((("nowhere", 1),), "eve", None, "x")

    assert pgpass.find(stranger, environment, "nowhere", 1) is None
    assert pgpass.find(URL, {"PGPASSFILE": str(tmp_path / "none")}, "db.example", 5433) is None


def test_url_may_name_the_file(environment: dict[str, str]) -> None:
    """The option passfile has priority over the variable."""
    url = PostgresUrl(URL.hosts, "ann", None, "sagewai", {"passfile": environment["PGPASSFILE"]})

    assert pgpass.find(url, {"PGPASSFILE": "/none"}, "db.example", 5433) == r"a:b\c#d"


def test_file_open_to_others_is_refused(environment: dict[str, str]) -> None:
    """It reports why, where libpq goes on without a password."""
    Path(environment["PGPASSFILE"]).chmod(0o640)

    with pytest.raises(PermissionDeniedError, match="readable by others"):
        pgpass.find(URL, environment, "db.example", 5433)


def test_each_host_has_a_line_of_its_own(environment: dict[str, str]) -> None:
    """The password of one host is not sent to another."""
    url = PostgresUrl((("db.example", 5432), ("other", None)), "ann", None, "sagewai")

    found = [pgpass.find(url, environment, *host) for host in pgpass.hosts(url, environment)]

    assert found == ["other port", "other host"]


def test_hosts_and_ports_come_from_the_variables() -> None:
    """Lists are paired; one port is for all hosts; the URL comes first."""
    listed = {"PGHOST": "a,/run/b", "PGPORT": "1,2"}

    assert pgpass.hosts(PostgresUrl(), listed) == (("a", 1), ("/run/b", 2))
    assert pgpass.hosts(PostgresUrl(), {"PGHOST": "a,b", "PGPORT": "3"}) == (("a", 3), ("b", 3))
    assert pgpass.hosts(PostgresUrl(), {}) == ((None, None),)
    assert pgpass.hosts(PostgresUrl((("c", 7), ("d", None))), {"PGPORT": "9"}) == (
        ("c", 7),
        ("d", 5432),
    )
    with pytest.raises(UsageError, match="2 ports for 3 hosts"):
        pgpass.hosts(PostgresUrl(), {"PGHOST": "a,b,c", "PGPORT": "1,2"})
