"""The content of a snapshot, decided from names and types, and why other files are omitted."""

import base64
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from sagewai_ops.backup.scan_items import ScanItem, ScanItems
from sagewai_ops.backup.scanner import HomeScan, main_database, scan_home
from sagewai_ops.errors import DamagedError
from sagewai_ops.home.paths import Kind, locate
from sagewai_ops.snapshots.omissions import Reason
from small_homes import small

KEY = b"c2FnZXdhaS1vcHMtdGVzdHMtbWFzdGVyLWtleS0wMDE="


def _scan(
    root: Path, environment: dict[str, str] | None = None, *, exclude: tuple[str, ...] = ()
) -> HomeScan:
    return scan_home(locate(root, environment or {}), exclude=exclude, key_values=(KEY,))


def _types(scan: HomeScan) -> dict[str, str]:
    return {item.path: item.type for item in scan.items}


def _reasons(scan: HomeScan) -> dict[str, Reason]:
    return {item.path: item.reason for item in scan.omissions}


def _home(tmp_path: Path) -> Path:
    root = tmp_path / "home"
    for part in ("config", "db", "data", "secrets"):
        (root / part).mkdir(parents=True)
    return root


def test_directory_precedes_its_entries_in_order_of_names(tmp_path: Path) -> None:
    """The order of the archive is the same on every file system."""
    root = _home(tmp_path)
    for name in ("b", "a", "C"):
        (root / "data" / name).mkdir()
        (root / "data" / name / "file").touch()

    paths = [item.path for item in _scan(root).items if item.path.startswith("data")]

    assert paths == [
        "data",
        "data/C",
        "data/C/file",
        "data/a",
        "data/a/file",
        "data/b",
        "data/b/file",
    ]


def test_only_leftovers_and_sidecars_of_a_built_home_are_omitted(tmp_path: Path) -> None:
    """Only files that the builder planted are omitted, each with its reason."""
    built = small(tmp_path / "home", artifacts=True, leftovers=True)

    scan = _scan(built.root)

    kept_out = _reasons(scan)
    expected = dict.fromkeys(built.leftovers, Reason.LEFTOVER)
    expected |= {"db/sagewai.db-wal": Reason.SIDECAR, "db/sagewai.db-shm": Reason.SIDECAR}
    expected |= {"config/admin-state.json.lock": Reason.LOCK, "secrets/master.key": Reason.KEY}
    assert kept_out == expected
    assert not any(reason.is_loss for reason in kept_out.values())
    every = {os.path.relpath(os.path.join(at, name), built.root) for at, directories, files in
             os.walk(built.root) for name in (*directories, *files)}  # fmt: skip
    assert every == {*_types(scan), *kept_out}


@pytest.mark.parametrize(
    "name",
    [
        "master.key",
        "secrets/master.key",
        "secrets/master.key.bak",
        "secrets/.env.key~",
        "data/notes.txt",
        "config/innocent.json",
    ],
)
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"  \n"])
def test_key_is_recognised_by_its_content(tmp_path: Path, name: str, ending: bytes) -> None:
    """A copy of the key under any name, with what editors add, is omitted as the key."""
    root = _home(tmp_path)
    (root / name).write_bytes(KEY + ending)

    scan = _scan(root)

    assert _reasons(scan) == {name: Reason.KEY}
    assert name not in _types(scan)


def test_a_hard_link_to_the_key_is_the_key(tmp_path: Path) -> None:
    """Another name of the same file is omitted too."""
    root = _home(tmp_path)
    (root / "secrets/master.key").write_bytes(KEY)
    (root / "data/other").hardlink_to(root / "secrets/master.key")

    assert _reasons(_scan(root))["data/other"] is Reason.KEY


def test_unknown_key_is_omitted_in_secrets_only(tmp_path: Path) -> None:
    """A file like a key is treated as a key only in a directory of keys."""
    root = _home(tmp_path)
    other = base64.urlsafe_b64encode(bytes(range(32)))
    (root / "secrets/old.key").write_bytes(other)
    (root / "data/token").write_bytes(other)

    scan = _scan(root)

    assert _reasons(scan) == {"secrets/old.key": Reason.KEY}
    assert "data/token" in _types(scan)


def test_links_below_data_are_stored_also_when_they_leave_the_home(tmp_path: Path) -> None:
    """A target inside the home is made relative; one outside stays as it was written."""
    root = _home(tmp_path)
    (tmp_path / "outside").touch()
    (root / "data/file").touch()
    for name, target in {
        "near": "file",
        "up": "../config",
        "absolute": str(root / "config"),
        "broken": "nothing",
        "self": "self",
        "out": "../../outside",
        "far": "/etc/hostname",
        "by-way": "out",
        "climbing": "../../home/data/file",
    }.items():
        (root / "data" / name).symlink_to(target)

    scan = _scan(root)

    links = {item.path: item for item in scan.items if item.type == "link"}
    assert {path: item.target for path, item in links.items() if not item.is_outside} == {
        "data/near": "file",
        "data/up": "../config",
        "data/absolute": "../config",
        "data/broken": "nothing",
        "data/self": "self",
    }
    outside = {
        "data/out": "../../outside",
        "data/far": "/etc/hostname",
        "data/by-way": "out",
        "data/climbing": "../../home/data/file",
    }
    assert {path: item.target for path, item in links.items() if item.is_outside} == outside
    assert scan.outside_links == outside
    assert Reason.LEAVES not in _reasons(scan).values()


def test_links_elsewhere_that_leave_the_home_are_omitted(tmp_path: Path) -> None:
    """Only below `data/` such a link is stored; a backup without the others is incomplete."""
    root = _home(tmp_path)
    (tmp_path / "directory").mkdir()
    for path in ("config/more", "more", "secrets/more"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).symlink_to(tmp_path / "directory")

    scan = _scan(root)

    omitted = {item.path for item in scan.omissions if item.reason is Reason.LEAVES}
    assert omitted == {"config/more", "more", "secrets/more"}
    assert Reason.LEAVES.is_loss
    assert scan.outside_links == {}


def test_links_that_sagewai_itself_follows_are_followed(tmp_path: Path) -> None:
    """A part or a state file that is a link to elsewhere is replaced by its target."""
    built = small(tmp_path / "home")
    shutil.move(built.root / "db", tmp_path / "disk")
    (built.root / "db").symlink_to(tmp_path / "disk")
    shutil.move(built.admin_state, tmp_path / "state.json")
    built.admin_state.symlink_to(tmp_path / "state.json")

    scan = _scan(built.root)

    types = _types(scan)
    assert types["db"] == "folder"
    assert types["db/sagewai.db"] == "database"
    assert types["config/admin-state.json"] == "file"
    assert _reasons(scan)["db/sagewai.db-wal"] is Reason.SIDECAR
    assert scan.followed == {
        "db": str(tmp_path / "disk"),
        "config/admin-state.json": str(tmp_path / "state.json"),
    }


def test_a_key_behind_a_followed_directory_is_the_key(tmp_path: Path) -> None:
    """`secrets` may be elsewhere; its key is still omitted."""
    root = _home(tmp_path)
    (root / "secrets").rmdir()
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault/master.key").write_bytes(KEY)
    (root / "secrets").symlink_to(tmp_path / "vault")

    assert _reasons(_scan(root))["secrets/master.key"] is Reason.KEY


def test_sockets_and_pipes_are_losses_with_their_type(tmp_path: Path) -> None:
    """Anything that is not a file, directory or link is named, unless it is excluded."""
    root = _home(tmp_path)
    os.mkfifo(root / "data/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "data/socket"))

    special = {item.path: (item.reason, item.detail) for item in _scan(root).omissions}
    excluded = _reasons(_scan(root, exclude=("data/pipe", "data/s*")))

    assert special == {
        "data/pipe": (Reason.SPECIAL, "FIFO"),
        "data/socket": (Reason.SPECIAL, "socket"),
    }
    assert set(excluded.values()) == {Reason.EXCLUDED}


@pytest.mark.parametrize("pattern", ["data/cache", "data/cache/", "*/cache", "d?ta/cache*"])
def test_excluding_a_directory_excludes_its_content(tmp_path: Path, pattern: str) -> None:
    """The directory is named once; its content is not scanned."""
    root = _home(tmp_path)
    (root / "data/cache/deep").mkdir(parents=True)

    scan = _scan(root, exclude=(pattern,))

    assert _reasons(scan) == {"data/cache": Reason.EXCLUDED}
    assert "data/cache/deep" not in _types(scan)


def test_files_with_reserved_names_are_stored_under_external(tmp_path: Path) -> None:
    """A home may contain `external/`, `snapshot.json` and `manifest.json` of its own."""
    root = _home(tmp_path)
    for name in ("snapshot.json", "manifest.json"):
        (root / name).write_text("{}")
    (root / "external").mkdir()
    (root / "external/file").touch()
    (root / "data/manifest.json").touch()

    types = _types(_scan(root))

    assert {path for path in types if "external" in path or "json" in path} == {
        "external",
        "external/home",
        "external/home/external",
        "external/home/external/file",
        "external/home/manifest.json",
        "external/home/snapshot.json",
        "data/manifest.json",
    }


def test_external_files_are_stored_by_the_name_of_their_variable(tmp_path: Path) -> None:
    """Documents, the SOPS directory and the database are stored; the cache can be created again."""
    built = small(tmp_path / "home")
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(built.admin_state, away / "state.json")
    shutil.move(built.root / "secrets/sops", away / "sops")
    (away / "sops/near").symlink_to("team.enc.yaml")
    (away / "cache").mkdir()
    for suffix in ("", "-wal", "-shm"):
        shutil.move(f"{built.database}{suffix}", f"{away}/other.db{suffix}")
    (away / "linked.json").symlink_to(away / "state.json")
    home = locate(
        built.root,
        {
            "SAGEWAI_ADMIN_STATE_FILE": str(away / "linked.json"),
            "SAGEWAI_SOPS_ROOT": str(away / "sops"),
            "SAGEWAI_CACHE_DIR": str(away / "cache"),
            "SAGEWAI_DATABASE_URL": f"sqlite+aiosqlite:///{away}/other.db",
        },
    )

    scan = scan_home(home)

    types = _types(scan)
    assert {path: kind for path, kind in types.items() if path.startswith("external/")} == {
        "external/SAGEWAI_ADMIN_STATE_FILE": "file",
        "external/SAGEWAI_SOPS_ROOT": "folder",
        "external/SAGEWAI_SOPS_ROOT/near": "link",
        "external/SAGEWAI_SOPS_ROOT/team.enc.yaml": "file",
        "external/SAGEWAI_DATABASE_URL": "database",
    }
    assert scan.external["external/SAGEWAI_ADMIN_STATE_FILE"] == str(away / "linked.json")
    main = main_database(home, scan)
    assert main is not None
    assert main.path == "external/SAGEWAI_DATABASE_URL"


def test_override_of_a_missing_file_is_a_loss(tmp_path: Path) -> None:
    """The variable promises a document: if it is missing, the backup is incomplete."""
    root = _home(tmp_path)

    scan = _scan(root, {"SAGEWAI_CONNECTIONS_FILE": str(tmp_path / "missing.json")})

    assert _reasons(scan) == {"external/SAGEWAI_CONNECTIONS_FILE": Reason.UNREADABLE}


def test_database_of_an_override_inside_the_home_is_copied_as_a_database(
    tmp_path: Path,
) -> None:
    """Also without a WAL next to it; in place of a link to it, which no restore creates."""
    built = small(tmp_path / "home", journal="none")
    other = built.root / "data/live.db"
    shutil.move(built.database, other)
    built.database.symlink_to("../data/live.db")

    for environment in ({}, {"SAGEWAI_DATABASE_URL": f"sqlite:///{other}"}):
        home = locate(built.root, environment)
        scan = scan_home(home)
        main = main_database(home, scan)

        assert main is not None
        assert (main.path, main.type) == ("db/sagewai.db", "database")


def test_another_database_with_a_wal_is_copied_without_sidecars(tmp_path: Path) -> None:
    """A user's own SQLite database is torn by a plain copy as well."""
    built = small(tmp_path / "home")
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(f"{built.database}{suffix}", f"{built.root}/data/own.db{suffix}")
    (built.root / "data/no.db").write_text("not a database")
    (built.root / "data/no.db-wal").write_text("nor this")

    scan = _scan(built.root)

    types = _types(scan)
    assert types["data/own.db"] == "database"
    assert types["data/no.db"] == types["data/no.db-wal"] == "file"
    assert _reasons(scan)["data/own.db-wal"] is Reason.SIDECAR


def test_a_directory_in_the_databases_place_is_damage(tmp_path: Path) -> None:
    """A directory cannot be read as a database, and is not skipped."""
    root = _home(tmp_path)
    (root / "db/sagewai.db").mkdir()
    home = locate(root, {})

    with pytest.raises(DamagedError, match="is a directory"):
        main_database(home, scan_home(home))


def test_a_name_too_long_for_a_snapshot_is_a_loss(tmp_path: Path) -> None:
    """Paths beyond 4000 bytes cannot be members; names of 255 bytes can."""
    root = _home(tmp_path)
    descriptor = os.open(root / "data", os.O_RDONLY)
    for _step in range(16):
        os.mkdir("n" * 255, dir_fd=descriptor)
        below = os.open("n" * 255, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)

    scan = _scan(root)

    assert Reason.NAME in _reasons(scan).values()
    assert sum("n" * 255 in path for path in _types(scan)) == 15


def test_directories_may_nest_deeper_than_the_call_stack(tmp_path: Path) -> None:
    """1500 levels are scanned like any other directory."""
    root = _home(tmp_path)
    for depth in range(1, 1501):
        os.mkdir(root / "data" / "/".join("d" * depth))

    scan = _scan(root)

    subprocess.run(["rm", "-r", root], check=True)  # pytest's own clean-up calls itself

    assert sum(item.path.startswith("data/d") for item in scan.items) == 1500
    assert scan.omissions == []


def test_a_wal_without_its_database_is_a_loss(tmp_path: Path) -> None:
    """It may contain everything, and no copy of a database has its content."""
    root = _home(tmp_path)
    (root / "db/sagewai.db-wal").write_bytes(b"pages")
    (root / "db/sagewai.db-shm").write_bytes(b"scratch")

    reasons = _reasons(_scan(root))

    assert reasons["db/sagewai.db-wal"] is Reason.UNREADABLE
    assert Reason.UNREADABLE.is_loss
    assert reasons["db/sagewai.db-shm"] is Reason.SIDECAR
    (root / "db/sagewai.db-wal").write_bytes(b"")
    assert _reasons(_scan(root))["db/sagewai.db-wal"] is Reason.SIDECAR


@pytest.mark.parametrize("path", ["db/sagewai.db", "config/admin-state.json", "data"])
def test_dangling_link_at_a_path_of_sagewai_is_a_loss(path: str, tmp_path: Path) -> None:
    """A volume that is not mounted must not look like a home without a database."""
    root = _home(tmp_path)
    (root / "data").rmdir()
    (root / path).symlink_to("gone")

    scan = _scan(root)
    (lost,) = [item for item in scan.omissions if item.path == path]

    assert lost.reason is Reason.UNREADABLE
    assert "gone" in lost.detail
    assert path not in _types(scan)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_link_of_a_user_to_the_file_of_another_is_a_loss(tmp_path: Path) -> None:
    """In place of a document, it would put root's file into the snapshot."""
    root = _home(tmp_path)
    (tmp_path / "shadow").write_text("root's")
    (root / "config").mkdir(exist_ok=True)
    (root / "config/connections.json").symlink_to(tmp_path / "shadow")
    os.chown(root / "config/connections.json", 40001, 40001, follow_symlinks=False)

    scan = scan_home(locate(root, {}))

    assert _reasons(scan)["config/connections.json"] is Reason.UNREADABLE
    assert "config/connections.json" not in _types(scan)


def test_packed_items_are_the_same_in_the_same_order() -> None:
    """Paths that are not UTF-8 too, over several blocks, with items of other types between."""
    items = ScanItems()
    added = [
        ScanItem("data", "/home/", "folder", Kind.OTHER),
        *(ScanItem(f"data/{n:05}\udce9\n", "/home/", "file", Kind.OTHER) for n in range(3000)),
        ScanItem("data/link", "/home/", "link", Kind.OTHER, "00001", is_absolute=True),
        ScanItem("data/mixed.db", "/home/", "database", Kind.DATABASE),
        ScanItem("data/mixed.db.bak", "/home/", "file", Kind.SECRET),
        ScanItem("data/other", "/elsewhere/", "file", Kind.SECRET),
        ScanItem("external/X", "/elsewhere/file", "file", Kind.SECRET),
    ]
    for item in added:
        items.append(item)

    assert list(items) == added
    assert list(items) == added
    assert [item.path for item in items.not_plain()] == [
        *("data", "data/link", "data/mixed.db", "external/X")
    ]
    changed = ScanItem("data/mixed.db", "/home/", "file", Kind.DATABASE)
    items.replace(added[-4], changed)
    assert list(items) == [*added[:-4], changed, *added[-3:]]
    items.clear()
    assert list(items) == []
