"""The way to a path: each directory in which a name is looked up, and each link."""

import os
from pathlib import Path

import pytest

from sagewai_ops.permissions.path_walk import way_to, weak_spot


def below(root: Path, path: Path) -> list[str]:
    """Give what is passed below a directory, relative to it."""
    return [str(one.relative_to(root)) for one in way_to(path) if one.is_relative_to(root)]


def test_way_without_links_is_the_directories_above(tmp_path: Path) -> None:
    """From the root on; what it leads to is not among them, nor need it exist."""
    assert way_to(tmp_path / "a/b") == (*reversed(tmp_path.parents), tmp_path, tmp_path / "a")


@pytest.mark.parametrize("is_absolute", [False, True])
def test_link_and_its_way_are_passed(tmp_path: Path, *, is_absolute: bool) -> None:
    """Both where it stands and where it leads to."""
    for name in ("one", "two/deep"):
        (tmp_path / name).mkdir(parents=True)
    target = tmp_path / "two/deep" if is_absolute else Path("../two/deep")
    (tmp_path / "one/link").symlink_to(target)

    assert below(tmp_path, tmp_path / "one/link/file") == [
        ".",
        "one",
        "one/link",
        "two",
        "two/deep",
    ]


def test_step_up_follows_where_one_really_is(tmp_path: Path) -> None:
    """After a link, `..` is above what it leads to."""
    (tmp_path / "one/two").mkdir(parents=True)
    (tmp_path / "link").symlink_to("one/two")

    assert below(tmp_path, tmp_path / "link/../file") == [".", "link", "one"]


def test_relative_path_begins_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a variable may name one."""
    monkeypatch.chdir(tmp_path)

    assert way_to(Path("a/b")) == way_to(tmp_path / "a/b")


def test_links_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    """The system follows no more than some either."""
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")

    assert below(tmp_path, tmp_path / "one") == [".", "one", "two"]


def test_weak_spot_is_where_others_may_write(tmp_path: Path) -> None:
    """A sticky directory is none, and what is known already is left out."""
    (tmp_path / "open/deep").mkdir(parents=True)
    way, known = tmp_path / "open/deep/file", [*tmp_path.parents, tmp_path]
    assert weak_spot(way, os.geteuid(), known) == ""

    (tmp_path / "open").chmod(0o777)
    assert "open has mode 0777" in weak_spot(way, os.geteuid(), known)
    assert weak_spot(way, os.geteuid(), [*known, tmp_path / "open"]) == ""

    (tmp_path / "open").chmod(0o1777)
    assert weak_spot(way, os.geteuid(), known) == ""


def test_weak_spot_is_what_belongs_to_another(tmp_path: Path) -> None:
    """Who owns a directory can open it to himself."""
    (tmp_path / "open").mkdir()
    known = [*tmp_path.parents, tmp_path]
    stranger = 4242
    if os.geteuid() == 0:
        os.chown(tmp_path / "open", stranger, stranger)
        assert f"owned by uid {stranger}" in weak_spot(tmp_path / "open/file", 0, known)
    else:
        assert "is owned by uid" in weak_spot(tmp_path / "open/file", stranger, known)
