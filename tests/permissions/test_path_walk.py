"""The steps of a path: each directory in which a name is looked up, and each link."""

import os
from pathlib import Path

import pytest

from sagewai_ops.permissions.path_walk import find_replaceable_step, resolution_steps


def below(root: Path, path: Path) -> list[str]:
    """Return the steps below a directory, relative to it."""
    return [
        str(step.relative_to(root)) for step in resolution_steps(path) if step.is_relative_to(root)
    ]


def test_steps_without_links_are_the_directories_above(tmp_path: Path) -> None:
    """From the root; the entry itself is not among them, and need not exist."""
    assert resolution_steps(tmp_path / "a/b") == (
        *reversed(tmp_path.parents),
        tmp_path,
        tmp_path / "a",
    )


@pytest.mark.parametrize("is_absolute", [False, True])
def test_link_and_the_steps_of_its_target_are_included(
    tmp_path: Path, *, is_absolute: bool
) -> None:
    """Both the path of the link and that of its target."""
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


def test_parent_of_a_link_is_that_of_its_target(tmp_path: Path) -> None:
    """After a link, `..` is above the target."""
    (tmp_path / "one/two").mkdir(parents=True)
    (tmp_path / "link").symlink_to("one/two")

    assert below(tmp_path, tmp_path / "link/../file") == [".", "link", "one"]


def test_relative_path_begins_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a variable."""
    monkeypatch.chdir(tmp_path)

    assert resolution_steps(Path("a/b")) == resolution_steps(tmp_path / "a/b")


def test_loop_of_links_ends(tmp_path: Path) -> None:
    """The system has a limit as well."""
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")

    assert below(tmp_path, tmp_path / "one") == [".", "one", "two"]


def test_step_that_others_can_write_to_is_replaceable(tmp_path: Path) -> None:
    """A sticky directory is not, and known steps are left out."""
    (tmp_path / "open/deep").mkdir(parents=True)
    path, known = tmp_path / "open/deep/file", [*tmp_path.parents, tmp_path]
    assert find_replaceable_step(path, os.geteuid(), known) == ""

    (tmp_path / "open").chmod(0o777)
    assert "open has mode 0777" in find_replaceable_step(path, os.geteuid(), known)
    assert find_replaceable_step(path, os.geteuid(), [*known, tmp_path / "open"]) == ""

    (tmp_path / "open").chmod(0o1777)
    assert find_replaceable_step(path, os.geteuid(), known) == ""


def test_step_of_another_owner_is_replaceable(tmp_path: Path) -> None:
    """The owner of a directory can make it writable."""
    (tmp_path / "open").mkdir()
    known = [*tmp_path.parents, tmp_path]
    stranger = 4242
    if os.geteuid() == 0:
        os.chown(tmp_path / "open", stranger, stranger)
        assert f"owned by uid {stranger}" in find_replaceable_step(tmp_path / "open/file", 0, known)
    else:
        assert "is owned by uid" in find_replaceable_step(tmp_path / "open/file", stranger, known)
