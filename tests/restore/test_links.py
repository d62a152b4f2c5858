"""Symlinks of an archive, resolved together."""

import pytest

from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.errors import DamagedError
from sagewai_ops.restore.links import NEVER_LINKS, check_links


def _link(path: str, target: str, *, outside: bool = False) -> tuple[str, Entry]:
    return path, Entry(path, EntryType.LINK, 0o777, 0, target=target, is_outside=outside)


@pytest.mark.parametrize(
    "links",
    [
        [_link("data/a/b/up", "../../.."), _link("sessions", "data/a/b/up/../evil")],
        [_link("x/here", "."), _link("x/out", "here/../../etc")],
        [_link("a/b/top", "../.."), _link("c", "a/b/top/..")],
        [_link("data/disk", "/mnt/disk", outside=True), _link("config/x", "../data/disk/x")],
        [_link("one", "two"), _link("two", "d/three"), _link("d/three", "../d/up/../../x"),
         _link("d/up", "..")],
    ],
)  # fmt: skip
def test_links_that_lead_out_together_are_refused(links: list[tuple[str, Entry]]) -> None:
    """Each stays inside by its own names; the kernel follows one through the other."""
    with pytest.raises(DamagedError, match="by way of others"):
        check_links(links)


@pytest.mark.parametrize("path", sorted(NEVER_LINKS))
def test_link_in_place_of_a_file_of_sagewai_is_refused(path: str) -> None:
    """Its target would be written by the program that writes the document, key or database next."""
    with pytest.raises(DamagedError, match="a symlink, not"):
        check_links([_link(path, "x")])


def test_links_that_stay_inside_are_accepted() -> None:
    """Chains, loops and links to missing entries are the home's own affair."""
    check_links([
        _link("data/current", "versions/2"),
        _link("data/alias", "current/file"),
        _link("data/up", "../sessions/x"),
        _link("loop", "loop/x"),
        _link("ping", "pong"), _link("pong", "ping"),
        *(_link(f"data/chain{number}", f"chain{number + 1}") for number in range(3000)),
        _link("data/disk", "/mnt/disk", outside=True),
    ])  # fmt: skip
