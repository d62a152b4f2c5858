"""Where members go in a home: by their path, or where Sagewai looks without an override."""

from pathlib import Path

import pytest

from sagewai_ops.archive.manifest import Entry, EntryType, Manifest
from sagewai_ops.home.paths import locate
from sagewai_ops.snapshots.member_paths import MemberPaths


def _places(*paths: str, external: object = None) -> tuple[MemberPaths, dict[str, str | None]]:
    entries = tuple(Entry(path, EntryType.FILE, 0o600, 0) for path in paths)
    places = MemberPaths(Manifest(entries, {} if external is None else {"external": external}))
    return places, {entry.path: places.path_of(entry) for entry in entries}


def test_most_members_keep_their_path() -> None:
    """A path in the archive is the path in the home; the header stays behind."""
    _, found = _places("snapshot.json", "config/admin-state.json", "externals", "data/external/x")

    assert found == {
        "snapshot.json": None,
        "config/admin-state.json": "config/admin-state.json",
        "externals": "externals",
        "data/external/x": "data/external/x",
    }


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("SAGEWAI_ADMIN_STATE_FILE", "config/admin-state.json"),
        ("SAGEWAI_CONNECTIONS_FILE", "config/connections.json"),
        ("SAGEWAI_DATABASE_URL", "db/sagewai.db"),
        ("DATABASE_URL", "db/sagewai.db"),
    ],
)
def test_document_from_outside_goes_to_its_standard_place(variable: str, place: str) -> None:
    """Sagewai finds it there once the variable is gone."""
    member = f"external/{variable}"

    places, found = _places("external", member, external={member: "/srv/x"})

    assert found == {"external": None, member: place}
    assert places.unplaced == {}


def test_directory_from_outside_goes_with_all_in_it() -> None:
    """The files below it keep their places below."""
    root = "external/SAGEWAI_SOPS_ROOT"

    _, found = _places("external", root, f"{root}/a/b.yaml", external={root: "/srv/sops"})

    assert found[root] == "secrets/sops"
    assert found[f"{root}/a/b.yaml"] == "secrets/sops/a/b.yaml"


def test_document_whose_place_is_taken_stays_aside() -> None:
    """The home's own file keeps its place, and the other is named with its origin."""
    member = "external/SAGEWAI_CONNECTIONS_FILE"

    places, found = _places(
        "config/connections.json", "external", member, external={member: "/srv/c.json"}
    )

    assert found[member] == member
    assert found["config/connections.json"] == "config/connections.json"
    assert list(places.warnings(locate(Path("/h"), {}))) == [
        f"/h/{member}: was /srv/c.json, the home has another file at its path"
    ]


def test_two_variables_for_the_same_path_do_not_collide() -> None:
    """The first has it; the second stays aside."""
    first, second = "external/SAGEWAI_DATABASE_URL", "external/DATABASE_URL"

    places, found = _places("external", first, second, external={first: "/a", second: "/b"})

    assert (found[first], found[second]) == ("db/sagewai.db", second)
    assert places.unplaced == {second: "/b"}


def test_names_that_the_archive_needs_come_back_from_below_external() -> None:
    """A home may hold a `manifest.json` of its own."""
    _, found = _places("external", "external/home", "external/home/manifest.json")

    assert found["external/home/manifest.json"] == "manifest.json"
    assert found["external/home"] is None


def test_key_that_no_file_held_becomes_the_home_s_own() -> None:
    """A sealed snapshot brings the key from the environment to where Sagewai looks for it."""
    _, found = _places("external", "external/master.key")

    assert found["external/master.key"] == "secrets/master.key"


def test_key_in_use_goes_before_a_file_that_was_not() -> None:
    """The file's own key is kept aside and named."""
    places, found = _places("external", "external/master.key", "secrets/master.key")

    assert found["external/master.key"] == "secrets/master.key"
    assert found["secrets/master.key"] == "external/master.key"
    (warning,) = places.warnings(locate(Path("/h"), {}))
    assert "/h/external/master.key" in warning


def test_variable_that_is_set_at_the_target_is_warned_of() -> None:
    """Sagewai would go on reading the file outside."""
    member = "external/SAGEWAI_ADMIN_STATE_FILE"
    places, _ = _places("external", member, external={member: "/srv/s.json"})
    target = locate(Path("/h"), {"SAGEWAI_ADMIN_STATE_FILE": "/srv/s.json"})

    (warning,) = places.warnings(target)

    assert "SAGEWAI_ADMIN_STATE_FILE is set" in warning
    assert "/h/config/admin-state.json" in warning


@pytest.mark.parametrize("external", [{}, {"external/NOTHING": "/x"}, {"nowhere": "/x"}])
def test_wrong_facts_place_nothing(external: dict[str, str]) -> None:
    """An unexplained member below external/ is not part of the home."""
    places, found = _places("external", "external/x", external=external)

    assert found == {"external": None, "external/x": None}
    assert places.unplaced == {}
