"""Where a home is and what is in it: Sagewai's own rules, without touching anything."""

import os
from pathlib import Path

import pytest

from sagewai_ops.errors import NotFoundError
from sagewai_ops.home.paths import Kind, kind_of, layout_of, locate, require


def test_home_is_that_of_the_option_or_the_variable_or_the_user(tmp_path: Path) -> None:
    """In this order; an empty variable is ignored."""
    variables = {"HOME": str(tmp_path), "SAGEWAI_HOME": str(tmp_path / "named")}

    assert locate(tmp_path / "option", variables).root == tmp_path / "option"
    assert locate(None, variables).root == tmp_path / "named"
    assert locate(None, {**variables, "SAGEWAI_HOME": ""}).root == tmp_path / ".sagewai"


def test_tilde_is_expanded_and_links_are_followed(tmp_path: Path) -> None:
    """As Sagewai resolves it; the home need not exist."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    variables = {"HOME": str(tmp_path), "SAGEWAI_HOME": "~/link/x"}

    assert locate(None, variables).root == tmp_path / "real/x"
    assert not (tmp_path / "real/x").exists()


def test_relative_home_is_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for Sagewai."""
    monkeypatch.chdir(tmp_path)

    assert locate(None, {"SAGEWAI_HOME": "here"}).root == tmp_path / "here"


def test_documents_have_their_paths(tmp_path: Path) -> None:
    """Without overrides, every path is below the root."""
    home = locate(tmp_path, {})

    assert home.admin_state == tmp_path / "config/admin-state.json"
    assert home.connections == tmp_path / "config/connections.json"
    assert home.profiles == tmp_path / "secrets/profiles.json"
    assert home.master_key == tmp_path / "secrets/master.key"
    assert home.database == tmp_path / "db/sagewai.db"
    assert home.overrides == {}
    assert home.snapshots == tmp_path.with_name(f"{tmp_path.name}.snapshots")


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("SAGEWAI_ADMIN_STATE_FILE", "admin_state"),
        ("SAGEWAI_CONNECTIONS_FILE", "connections"),
        ("SAGEWAI_SOPS_ROOT", "sops_root"),
        ("SAGEWAI_CACHE_DIR", "cache_dir"),
    ],
)
def test_override_moves_one_path(tmp_path: Path, variable: str, field: str) -> None:
    """It is listed only if it leads out of the home."""
    outside = locate(tmp_path / "home", {variable: str(tmp_path / "x")})
    inside = locate(tmp_path / "home", {variable: str(tmp_path / "home/x")})

    assert getattr(outside, field) == tmp_path / "x"
    assert outside.overrides == {variable: tmp_path / "x"}
    assert getattr(inside, field) == tmp_path / "home/x"
    assert inside.overrides == {}


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////srv/a.db", "/srv/a.db"),
        ("sqlite+aiosqlite:////srv/a%20b.db", "/srv/a b.db"),
        ("sqlite+pysqlite:////srv/a.db", "/srv/a.db"),
    ],
)
def test_url_of_a_file_moves_the_database(tmp_path: Path, url: str, path: str) -> None:
    """Percent signs are decoded, as SQLAlchemy does."""
    home = locate(tmp_path, {"SAGEWAI_DATABASE_URL": url})

    assert home.database == Path(path)
    assert home.overrides == {"SAGEWAI_DATABASE_URL": Path(path)}
    assert home.server_url_variable == ""


def test_url_of_a_server_does_not_move_the_file(tmp_path: Path) -> None:
    """Learnings stay in the home's own database; the variable is reported, not the URL."""
    home = locate(tmp_path, {"DATABASE_URL": "postgresql://u:p@h/d"})

    assert home.database == tmp_path / "db/sagewai.db"
    assert home.server_url_variable == "DATABASE_URL"
    assert "p@h" not in repr(home)


def test_first_of_the_two_urls_is_used(tmp_path: Path) -> None:
    """SAGEWAI_DATABASE_URL before DATABASE_URL; an empty one is ignored."""
    both = {"SAGEWAI_DATABASE_URL": "sqlite:////a", "DATABASE_URL": "sqlite:////b"}

    assert locate(tmp_path, both).database == Path("/a")
    assert locate(tmp_path, {**both, "SAGEWAI_DATABASE_URL": ""}).database == Path("/b")


def test_missing_home_is_refused(tmp_path: Path) -> None:
    """Missing and not a directory are different messages."""
    (tmp_path / "file").touch()

    with pytest.raises(NotFoundError, match="not found"):
        require(locate(tmp_path / "none", {}))
    with pytest.raises(NotFoundError, match="not a directory"):
        require(locate(tmp_path / "file", {}))
    require(locate(tmp_path, {}))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("db/sagewai.db", Kind.DATABASE),
        ("db/sagewai.db-wal", Kind.SIDECAR),
        ("db/sagewai.db-shm", Kind.SIDECAR),
        ("db/sagewai.db-journal", Kind.SIDECAR),
        ("db/other.db", Kind.OTHER),
        ("data/db/sagewai.db", Kind.OTHER),
        ("secrets/master.key", Kind.KEY),
        ("master.key", Kind.KEY),
        ("data/master.key", Kind.OTHER),
        ("config/admin-state.json.lock", Kind.LOCK),
        ("admin-state.json.lock", Kind.LOCK),
        ("config/tmpab12cd_x.tmp", Kind.LEFTOVER),
        ("config/.connections.q7w8e9r0.tmp", Kind.LEFTOVER),
        ("secrets/.profiles.z1x2c3v4.tmp", Kind.LEFTOVER),
        ("data/tmpab12cd_x.tmp", Kind.OTHER),
        ("secrets/sops/a.yaml", Kind.SECRET),
        ("config/connections.json", Kind.SECRET),
        ("config/notes.txt", Kind.OTHER),
        (".sagewai-ops-restore-x/db/sagewai.db", Kind.OWN),
        ("data/.sagewai-ops-x", Kind.OTHER),
        ("data/\udcff", Kind.OTHER),
    ],
)
def test_kind_follows_from_the_path(path: str, kind: Kind) -> None:
    """Only the same name in the same directory is of the same kind."""
    assert kind_of(path) is kind


def test_layouts_are_distinguished(tmp_path: Path) -> None:
    """Flat files at the root, the current directories, both, or nothing."""
    assert layout_of(tmp_path) == "empty"
    (tmp_path / "master.key").symlink_to("nowhere")
    assert layout_of(tmp_path) == "flat"
    (tmp_path / "db").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/connections.json").touch()
    assert layout_of(tmp_path) == "mixed"
    os.unlink(tmp_path / "master.key")
    assert layout_of(tmp_path) == "canonical"
