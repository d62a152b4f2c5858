"""`migrate-layout` next to the real Sagewai's own migration, on copies of the same home."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from interop import program
from interop.environment import run_in_sagewai
from interop.homes import Site, key_of, read_home
from sagewai_ops.home.paths import LEGACY_PLACES

pytestmark = pytest.mark.interop

KEY = b"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
TIME = 1_700_000_000
# Runs the real migration on SAGEWAI_HOME, then what every start does with the key.
MIGRATE = "from sagewai import home\nhome.migrate_home()\n"
USE_KEY = "from sagewai.admin.secret_crypto import get_admin_crypto\nget_admin_crypto()\n"


def flat(home: Path) -> None:
    """Write the four legacy files."""
    home.mkdir()
    for name in LEGACY_PLACES:
        put(home / name, KEY if name == "master.key" else b"{}")


def interrupted(home: Path) -> None:
    """Leave two of the four at the root."""
    flat(home)
    for name in ("connections.json", "master.key"):
        place = home / LEGACY_PLACES[name]
        place.parent.mkdir(mode=0o700)
        (home / name).rename(place)


def only_key(home: Path) -> None:
    """Have a key and nothing else."""
    home.mkdir()
    put(home / "master.key", KEY)


def put(path: Path, content: bytes) -> None:
    """Write a private file of a known age."""
    path.write_bytes(content)
    path.chmod(0o600)
    os.utime(path, (TIME, TIME))


def tree(home: Path) -> dict[str, tuple[int, int, bytes]]:
    """Map each file to mode, time and content, and each directory below the home to nothing."""
    found = {}
    for path in sorted(home.rglob("*")):
        status = path.stat()
        facts = (0, 0, b"")
        if path.is_file():
            facts = (status.st_mode, status.st_mtime_ns, path.read_bytes())
        found[str(path.relative_to(home))] = facts
    return found


def run_script(directory: Path, code: str, home: Path, variables: Mapping[str, str]) -> None:
    """Run lines of code with the real Sagewai."""
    script = directory / "script.py"
    script.write_text(code, encoding="utf-8")
    run_in_sagewai(script, env={**variables, "SAGEWAI_HOME": str(home)})


@pytest.mark.parametrize("shape", [flat, interrupted, only_key])
def test_clean_home_gets_what_sagewai_would_make(
    tmp_path: Path, shape: Callable[[Path], None]
) -> None:
    """The same files, contents, modes and times; the real migration then finds nothing to do."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shape(ours)
    shape(theirs)

    program.succeed(ours, "migrate-layout")
    run_script(tmp_path, MIGRATE, theirs, {})

    assert tree(ours) == tree(theirs)
    before = tree(ours)
    run_script(tmp_path, MIGRATE, ours, {})
    assert tree(ours) == before


@pytest.mark.parametrize(
    "variable", ["SAGEWAI_ADMIN_STATE_FILE", "SAGEWAI_ADMIN_STATE", "SAGEWAI_CONNECTIONS_FILE"]
)
def test_variables_keep_what_they_keep_for_sagewai(
    tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that a variable names stays, in both."""
    from sagewai_ops.home.paths import locate
    from sagewai_ops.operations.migrate_layout import migrate_layout

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    flat(ours)
    flat(theirs)
    variables = {variable: "/srv/elsewhere.json", "SAGEWAI_MASTER_KEY": KEY.decode()}

    migrate_layout(locate(ours, variables), variables)
    run_script(tmp_path, MIGRATE, theirs, variables)

    assert tree(ours) == tree(theirs)


def test_what_sagewai_would_lose_is_kept(tmp_path: Path) -> None:
    """A relative link dangles after the real migration, and holds its content after ours."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for home in (ours, theirs):
        home.mkdir()
        put(home / "real.json", b"{}")
        (home / "admin-state.json").symlink_to("real.json")

    program.succeed(ours, "migrate-layout")
    run_script(tmp_path, MIGRATE, theirs, {})

    assert (ours / "config/admin-state.json").read_bytes() == b"{}"
    assert not (theirs / "config/admin-state.json").exists()


def test_key_that_sagewai_would_replace_survives(tmp_path: Path) -> None:
    """An open key is overwritten by the real program, unless we moved it first."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for home in (ours, theirs):
        only_key(home)
        (home / "master.key").chmod(0o644)

    program.succeed(ours, "migrate-layout")
    for home in (ours, theirs):
        run_script(tmp_path, MIGRATE + USE_KEY, home, {})

    assert key_of(ours).read_bytes() == KEY
    assert key_of(theirs).read_bytes() != KEY


def test_repaired_key_survives(tmp_path: Path) -> None:
    """`verify-perms --fix` saves an open key from the next start of the real program."""
    home = tmp_path / "home"
    (home / "secrets").mkdir(parents=True)
    put(home / "secrets/master.key", KEY)
    (home / "secrets/master.key").chmod(0o644)

    program.call(home, "verify-perms", "--fix")
    run_script(tmp_path, USE_KEY, home, {})

    assert key_of(home).read_bytes() == KEY


def test_sagewai_reads_all_of_a_home_that_was_flat(site: Site, tmp_path: Path) -> None:
    """Its own home, made flat and migrated by us at its path, reads as before."""
    for name, place in LEGACY_PLACES.items():
        if (site.home / place).exists():
            (site.home / place).rename(site.home / name)
    shutil.rmtree(site.home / "config")

    program.succeed(site.home, "migrate-layout")

    assert read_home(site.home) == site.reading
