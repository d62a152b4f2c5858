"""What the builder of homes promises to the tests that stand on it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from cryptography.fernet import Fernet

import real_homes
import schema_catalogs
from home_builder import (
    ADMIN_PASSWORD,
    BuiltHome,
    build_home,
    state,
    vectors,
)

REVISIONS = (
    "001_initial",
    "009_tenancy_identity",
    "015_admin_resources",
    "018_fleet_schema_correction",
    "019_fleet_tasks",
    "020_fleet_task_lease",
)
SEALED_PLACES = {
    "admin-state.json",
    "connections.json",
    "profiles.json",
    "project.data_key_ref",
    "provider.data",
    "admin_resources.data",
    "connection.protocol_data",
    "connection.credentials_backend",
}
TOKEN = re.compile(r"fernet:[A-Za-z0-9_-]+=*")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltHome:
    """Build one home that tests read and leave as it is."""
    return build_home(tmp_path_factory.mktemp("built") / "home", rows=6)


@contextlib.contextmanager
def opened(database: Path, folder: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy of a database: closing the original would empty its WAL."""
    for path in database.parent.glob(f"{database.name}*"):
        shutil.copy(path, folder)
    with contextlib.closing(sqlite3.connect(folder / database.name)) as connection:
        yield connection


def content(home: Path, folder: Path) -> dict[str, object]:
    """Return every file's bytes by its path, and every table's rows instead of the database."""
    found: dict[str, object] = {}
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.parent.name != "db":
            found[os.fspath(path.relative_to(home))] = path.read_bytes()
    with opened(home / "db" / "sagewai.db", folder) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0 ORDER BY name"
        ).fetchall()
        for (table,) in tables:
            found[f"table {table}"] = connection.execute(f'SELECT * FROM "{table}"').fetchall()
    return found


def test_same_seed_gives_the_same_content(tmp_path: Path) -> None:
    """Two homes of one seed hold the same bytes and rows, those of another seed do not."""
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    contents = []
    for folder, seed in zip(folders, (7, 7, 8), strict=True):
        home = build_home(folder / "home", seed=seed, fleet_path="/srv/state", keys=2)
        contents.append(content(home.root, folder))
    first, second, third = contents

    assert first == second
    for name in ("config/admin-state.json", "secrets/master.key", "table sessions"):
        assert first[name] != third[name]


def test_every_table_is_filled_and_sound(built: BuiltHome, tmp_path: Path) -> None:
    """All 55 tables hold the rows that were told, and both of SQLite's checks find nothing."""
    with opened(built.database, tmp_path) as connection:
        counts = {
            table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]
            for table in schema_catalogs.sqlite()
        }

        assert counts == built.rows
        assert len(counts) == 55
        assert min(counts.values()) == 6
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_schema_is_that_of_the_catalog(built: BuiltHome, tmp_path: Path) -> None:
    """What SQLite says of a built home equals the catalog of a fresh Sagewai home."""
    with opened(built.database, tmp_path) as connection:
        assert schema_catalogs.read_sqlite(connection) == schema_catalogs.sqlite()


def test_schema_is_that_of_the_real_sagewai(tmp_path: Path) -> None:
    """The catalog equals what a home says that the real Sagewai wrote."""
    home = real_homes.unpack("real-small", tmp_path)

    with contextlib.closing(sqlite3.connect(home / "db" / "sagewai.db")) as connection:
        assert schema_catalogs.read_sqlite(connection) == schema_catalogs.sqlite()


@pytest.mark.parametrize("revision", REVISIONS)
def test_older_level_lacks_what_came_later(revision: str, tmp_path: Path) -> None:
    """Tables and columns are those that both engines know at the revision."""
    then = schema_catalogs.postgres(revision)["tables"]
    home = build_home(tmp_path / "home", revision=revision, rows=1)

    with opened(home.database, tmp_path) as connection:
        found = schema_catalogs.read_sqlite(connection)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert {table: set(facts["columns"]) for table, facts in found.items()} == {
        table: set(facts["columns"]) & set(then[table]["columns"])
        for table, facts in schema_catalogs.sqlite().items()
        if table in then
    }


def test_every_sealed_value_opens(built: BuiltHome) -> None:
    """Each token opens with its key to its plaintext, as the cryptography library reads it."""
    for value in (*built.sealed, *built.foreign):
        token = value.token.removeprefix("fernet:").encode("ascii")
        assert Fernet(value.key).decrypt(token).decode("utf-8") == value.plaintext
    names = {value.key_name for value in built.sealed}
    assert {name.split(":")[0] for name in names} == {"master-0", "project"}
    assert names - {"master-0"} <= {f"project:{project}" for project in built.data_keys}


def test_every_place_holds_sealed_values(built: BuiltHome, tmp_path: Path) -> None:
    """The tokens found by a scan of the whole home are those that were told, place by place."""
    found = set()
    for path in (built.admin_state, built.connections, built.profiles):
        found |= set(TOKEN.findall(path.read_text(encoding="utf-8")))
    with opened(built.database, tmp_path) as connection:
        for table in built.rows:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    found |= set(TOKEN.findall(value)) if isinstance(value, str) else set()

    assert found == {value.token for value in built.sealed}
    assert set(built.sealed_per_place) == SEALED_PLACES


def test_planted_secrets_stand_in_the_clear(built: BuiltHome, tmp_path: Path) -> None:
    """Every secret that was told to be readable is found in the home."""
    whole = b"".join(
        path.read_bytes()
        for path in built.root.rglob("*")
        if path.is_file() and not path.is_symlink()
    )

    assert [secret for secret in built.secrets if secret.value.encode() not in whole] == []


def test_several_keys_share_a_home(tmp_path: Path) -> None:
    """With three keys every one seals something, and only the first is in the home."""
    home = build_home(tmp_path / "home", keys=3, vectors=0, artifacts=False)

    assert {"master-0", "master-1", "master-2"} <= {value.key_name for value in home.sealed}
    assert home.master_key.read_bytes() == home.master_keys[0]
    others = [os.fspath(path) for path in home.root.rglob("*") if path.is_file()]
    assert not any(
        key in Path(path).read_bytes() for path in others for key in home.master_keys[1:]
    )


def test_home_without_a_key_file_keeps_its_sealed_values(tmp_path: Path) -> None:
    """The key can be left out, and so can sealing altogether."""
    keyless = build_home(tmp_path / "keyless", key_file=False, rows=1, vectors=0)
    bare = build_home(tmp_path / "bare", keys=0, rows=1, vectors=0)

    assert keyless.sealed
    assert not keyless.master_key.exists()
    assert not bare.sealed
    assert not bare.master_key.exists()
    assert b"fernet:" not in bare.admin_state.read_bytes()


def test_everything_can_stand_in_the_wal(tmp_path: Path) -> None:
    """The main file is one page without a table, and -wal holds all 55."""
    home = build_home(tmp_path / "home", journal="everything")
    alone = tmp_path / "alone.db"
    shutil.copy(home.database, alone)

    with contextlib.closing(sqlite3.connect(alone)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    assert home.database.stat().st_size == 4096
    with opened(home.database, tmp_path) as connection:
        assert schema_catalogs.read_sqlite(connection) == schema_catalogs.sqlite()


def test_part_of_the_database_stands_in_the_wal(built: BuiltHome, tmp_path: Path) -> None:
    """By default the main file alone opens, and lacks rows that -wal holds."""
    alone = tmp_path / "alone.db"
    shutil.copy(built.database, alone)

    with contextlib.closing(sqlite3.connect(alone)) as connection:
        assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (6,)
        assert connection.execute("SELECT count(*) FROM audit_event").fetchone() == (0,)


def test_clean_close_leaves_no_wal(tmp_path: Path) -> None:
    """A home that was closed cleanly has one database file, still in WAL mode."""
    home = build_home(tmp_path / "home", journal="none", rows=1)

    assert os.listdir(home.database.parent) == ["sagewai.db"]
    assert home.database.read_bytes()[18:20] == b"\x02\x02"


def test_storage_quirks_are_repeated(built: BuiltHome, tmp_path: Path) -> None:
    """Defaults, times, nulls and ids are stored as the real Sagewai stores them."""
    with opened(built.database, tmp_path) as connection:
        booleans = connection.execute(
            "SELECT DISTINCT typeof(input_encrypted), input_encrypted FROM workflow_runs"
        ).fetchall()
        lengths = connection.execute(
            "SELECT DISTINCT length(created_at) FROM workflow_runs"
        ).fetchall()
        outputs = connection.execute("SELECT DISTINCT output FROM workflow_runs").fetchall()
        runs = connection.execute(
            "SELECT count(*) FROM workflow_runs"
            " WHERE id = project_id || ':' || workflow_name || ':' || run_id"
        ).fetchone()
        keys = connection.execute("SELECT id FROM harness_keys").fetchall()

    assert {("text", "false"), ("integer", 0), ("integer", 1)} == set(booleans)
    assert {(19,), (26,)} == set(lengths)
    assert {(None,), ("null",)} < set(outputs)
    assert runs == (6,)
    assert all(re.fullmatch("[0-9a-f]{12}", key) for (key,) in keys)


def test_audit_chains_verify(built: BuiltHome, tmp_path: Path) -> None:
    """Every event's hash covers its predecessor's, and each chain ends at its head."""
    columns = ("org_id", "project_id", "actor_user_id", "action", "target_type", "target_id", "seq")
    ends: dict[str, tuple[str, int]] = {}
    with opened(built.database, tmp_path) as connection:
        connection.row_factory = sqlite3.Row
        for event in connection.execute("SELECT * FROM audit_event ORDER BY org_id, seq"):
            covered = {name: event[name] for name in columns}
            covered["metadata"] = json.loads(event["metadata"])
            covered["created_at"] = event["created_at"].replace(" ", "T") + "+00:00"
            text = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            expected = hashlib.sha256(((event["prev_hash"] or "") + text).encode()).hexdigest()
            assert event["hash"] == expected
            assert event["prev_hash"] == (ends[event["org_id"]][0] if event["seq"] > 1 else None)
            ends[event["org_id"]] = (event["hash"], event["seq"])
        heads = connection.execute("SELECT org_id, hash, seq FROM audit_chain_head").fetchall()

    assert {head[0]: (head[1], head[2]) for head in heads} == ends
    assert {seq for _, seq in ends.values()} == {4}


def test_learnings_are_found_in_the_shadow_tables(built: BuiltHome, tmp_path: Path) -> None:
    """Without the extension the vectors, ids and texts can be put together again."""
    with opened(built.database, tmp_path) as connection:
        rows = connection.execute(
            "SELECT rowid, id, chunk_id, chunk_offset FROM vec_learnings_rowids"
        ).fetchall()
        ((held,),) = connection.execute("SELECT vectors FROM vec_learnings_vector_chunks00")

    assert [row[0] for row in rows] == [row for row, _, _ in vectors.live_rows(28)]
    assert 1 not in {row[0] for row in rows}
    for row, name, chunk, offset in rows:
        expected = vectors.embedding(vectors.content(1, row), 384)
        assert (chunk, held[offset * 1536 : (offset + 1) * 1536]) == (1, expected)
        assert name == vectors.identifier(1, "vec_learnings", row)


@pytest.mark.skipif(
    not hasattr(sqlite3.Connection, "enable_load_extension"),
    reason="this Python loads no SQLite extensions",
)
def test_extension_reads_the_vectors(tmp_path: Path) -> None:
    """sqlite-vec takes the tables for its own: it counts, finds, adds and deletes."""
    import sqlite_vec

    home = build_home(tmp_path / "home", vectors=1500, more_vectors={"vec_notes": (40, 8)})
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        for table, dimension in (("vec_learnings", 384), ("vec_notes", 8)):
            count = home.vectors[table]
            for row, _, _ in list(vectors.live_rows(count))[:: count // 20]:
                text = vectors.content(1, row)
                nearest = connection.execute(
                    f"SELECT content, distance FROM {table} WHERE embedding MATCH ? AND k = 1",
                    (vectors.embedding(text, dimension),),
                ).fetchone()
                kept = connection.execute(
                    f"SELECT content, project_id FROM {table} WHERE id = ?",
                    (vectors.identifier(1, table, row),),
                ).fetchone()
                assert nearest == (text, 0.0)
                assert kept == (text, vectors.scope(row))
        connection.execute(
            "INSERT INTO vec_notes (id, embedding, project_id, content) VALUES (?, ?, ?, ?)",
            ("added", vectors.embedding("added", 8), "default", "added"),
        )
        connection.execute("DELETE FROM vec_notes WHERE content = 'kurz'")
        counted = connection.execute("SELECT count(*) FROM vec_notes").fetchone()

        assert counted == (40,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_admin_can_log_in(built: BuiltHome) -> None:
    """The stored hash is that of the told password, and the told tokens' hashes are there."""
    held = json.loads(built.admin_state.read_bytes())
    salt = held["admin"]["password_salt"].encode("ascii")
    derived = hashlib.pbkdf2_hmac("sha256", ADMIN_PASSWORD.encode("utf-8"), salt, 600_000)

    assert held["admin"]["password_hash"] == derived.hex() == state.PASSWORD_HASH
    for token, kept in (
        (built.session_token, held["active_tokens"][0]["hash"]),
        (built.api_token, held["api_tokens"][0]["token_hash"]),
    ):
        assert hashlib.sha256(token.encode("ascii")).hexdigest() == kept


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(umask: int, tmp_path: Path) -> None:
    """Files and folders have the modes that Sagewai gives them, whatever the process says."""
    before = os.umask(umask)
    try:
        home = build_home(tmp_path / "home", rows=1, vectors=0)
    finally:
        os.umask(before)
    modes = {
        os.fspath(path.relative_to(home.root)): stat.S_IMODE(path.lstat().st_mode)
        for path in home.root.rglob("*")
        if not path.is_symlink()
    }
    public = {name for name, mode in modes.items() if mode & 0o077}

    assert {name for name in public if modes[name] not in {0o644, 0o755, 0o640, 0o444}} == set()
    assert not {name for name in public if name.startswith(("secrets", "config/"))} - {
        "config/admin-state.json.lock"
    }
    assert modes["secrets"] == 0o700
    assert modes["secrets/master.key"] == modes["fleet/worker-a.json"] == 0o600
    assert modes["db/sagewai.db"] == modes["db/sagewai.db-wal"] == 0o644
    assert modes["data/artifacts/run.sh"] == modes["config"] == 0o755


def test_flat_layout_has_the_four_files_at_the_root(tmp_path: Path) -> None:
    """A legacy home keeps its documents and key beside the folders."""
    home = build_home(tmp_path / "home", layout="flat", rows=1, vectors=0)

    names = set(os.listdir(home.root))
    assert {"admin-state.json", "connections.json", "master.key", "profiles.json"} < names
    assert "config" not in names


def test_oddities_are_built_on_request(tmp_path: Path) -> None:
    """Odd names, special files, links that leave, own tables and orphans are there if asked for."""
    home = build_home(
        tmp_path / "home",
        rows=1,
        newline_names=True,
        undecodable_names=True,
        long_names=True,
        sockets=True,
        fifos=True,
        links_out=True,
        own_table=True,
        own_column=True,
        orphans=2,
        look_alikes=True,
    )
    names = os.listdir(os.fsencode(home.root / "data" / "artifacts" / "odd"))
    kinds = {name: (home.root / name).lstat().st_mode for name in home.left_out}

    assert {b"line\nbreak.txt", b"caf\xe9.txt"} < set(names)
    assert max(map(len, names)) == 255
    assert {stat.S_IFMT(mode) for mode in kinds.values()} == {
        stat.S_IFSOCK,
        stat.S_IFIFO,
        stat.S_IFLNK,
    }
    with opened(home.database, tmp_path) as connection:
        assert connection.execute('SELECT count(*) FROM "my notes"').fetchone() == (3,)
        assert connection.execute("SELECT my_label FROM agent_runs").fetchone() == ("mine",)
        assert len(connection.execute("PRAGMA foreign_key_check").fetchall()) == home.orphans
    assert b"fernet:my own words" in home.admin_state.read_bytes()


def test_leftovers_are_those_that_are_told(built: BuiltHome) -> None:
    """The temporary files of the home are the ones in `leftovers`."""
    found = {
        os.fspath(path.relative_to(built.root))
        for path in built.root.rglob("*")
        if path.suffix == ".tmp"
    }

    assert found == set(built.leftovers)
    assert len(found) == 3


def test_size_is_about_what_was_asked(tmp_path: Path) -> None:
    """Growth hits the asked size within a tenth, and compresses as text does."""
    home = build_home(
        tmp_path / "home",
        database_bytes=12_000_000,
        artifact_bytes=10_000_000,
        vectors=0,
        small_files=700,
    )
    database = b"".join(path.read_bytes() for path in home.database.parent.glob("sagewai.db*"))
    artifacts = home.root / "data" / "artifacts"
    ratio = len(database) / len(zstandard.ZstdCompressor(level=3).compress(database))

    assert 12_000_000 < len(database) < 15_500_000
    assert 3 < ratio < 5
    assert sum(path.stat().st_size for path in (artifacts / "large").iterdir()) == 10_000_000
    assert len(list((artifacts / "small").rglob("*.txt"))) == 700


def test_single_tables_can_be_longer(tmp_path: Path) -> None:
    """Counts of single tables are taken, and refused where composite keys tie the tables."""
    home = build_home(tmp_path / "home", rows_in={"cost_records": 2000}, vectors=0)

    assert home.rows["cost_records"] == 2000
    with pytest.raises(ValueError, match="membership"):
        build_home(tmp_path / "other", rows_in={"membership": 9})


def test_folder_with_something_in_it_is_refused(built: BuiltHome) -> None:
    """The builder never writes over a home."""
    with pytest.raises(FileExistsError):
        build_home(built.root)


def test_command_line_builds_a_home(tmp_path: Path) -> None:
    """`python -m home_builder` builds what its options say and reports it as JSON."""
    command = [sys.executable, "-m", "home_builder", os.fspath(tmp_path / "home")]
    command += ["--size", "1M", "--seed", "3", "--journal", "everything", "--no-leftovers"]
    fixtures = os.fspath(Path(__file__).parents[1] / "fixtures")
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": fixtures}, capture_output=True, check=True
    )
    report = json.loads(done.stdout)

    assert report["home"] == os.fspath(tmp_path / "home")
    assert (tmp_path / "home" / "db" / "sagewai.db").stat().st_size == 4096
    assert not list((tmp_path / "home").rglob("*.tmp"))


@pytest.mark.parametrize("name", real_homes.NAMES)
def test_real_home_unpacks_with_its_modes_and_links(name: str, tmp_path: Path) -> None:
    """A home of the real Sagewai comes out of its archive with modes, links and the WAL."""
    home = real_homes.unpack(name, tmp_path)
    run = home / "data" / "artifacts" / "run.sh"

    assert stat.S_IMODE(run.stat().st_mode) == 0o755
    assert int(run.stat().st_mtime) == 1_600_000_000
    assert os.readlink(home / "data" / "artifacts" / "dirlink") == "../workers"
    assert (home / "db" / "sagewai.db-wal").stat().st_size > 4096


def test_merged_revision_holds_both_branches() -> None:
    """Revision 007 has the columns of both 006 revisions, each of which lacks the other's."""
    columns = {
        revision["revision"][:5]: set(
            schema_catalogs.postgres(revision["revision"])["tables"]["workflow_runs"]["columns"]
        )
        for revision in schema_catalogs.revisions()
        if revision["revision"][:3] in {"005", "006", "007"}
    }
    artifact = set(
        schema_catalogs.postgres("006_artifact_destination")["tables"]["workflow_runs"]["columns"]
    )
    replay = set(
        schema_catalogs.postgres("006_replay_snapshots")["tables"]["workflow_runs"]["columns"]
    )

    assert artifact - columns["005_e"] == {"artifact_destination"}
    assert replay - columns["005_e"] == {"replay_of_run_id", "replay_from_step", "code_hash"}
    assert columns["007_m"] == artifact | replay


def test_catalogs_grow_from_revision_to_revision() -> None:
    """The 21 PostgreSQL catalogs go from 46 tables to 65 and hold what head is known for."""
    counts = [
        len(schema_catalogs.postgres(entry["revision"])["tables"])
        for entry in schema_catalogs.revisions()
    ]
    head = schema_catalogs.postgres("020_fleet_task_lease")

    assert (len(counts), counts[0], counts[-1]) == (21, 46, 65)
    assert counts == sorted(counts)
    assert len(head["sequences"]) == 20
    assert head["functions"]["sandbox_mode_rank(text)"]["answers"]["per_worker"] == 3
