"""What the rows of `alembic_version` mean, and how people name a revision."""

from __future__ import annotations

import pytest

from sagewai_ops.errors import NotFoundError
from sagewai_ops.schema import revision_graph
from sagewai_ops.schema.revision_graph import HEAD, revisions

ARTIFACTS, REPLAY = "006_artifact_destination", "006_replay_snapshots"


@pytest.mark.parametrize(
    ("heads", "tables", "state"),
    [
        ([], False, "empty"),
        ([], True, "unmanaged"),
        (["001_initial"], True, "behind"),
        ([ARTIFACTS], True, "behind"),
        ([REPLAY, ARTIFACTS], True, "forked"),
        ([HEAD], True, "current"),
        (["021_something"], True, "ahead"),
        (["021_something", "021_other"], True, "ahead"),
        (["021_something", HEAD], True, "unknown"),
        (["019_other"], True, "unknown"),
        (["abcdef012345"], True, "unknown"),
        (["005_execution_mode", ARTIFACTS], True, "unknown"),
        ([HEAD, REPLAY], True, "unknown"),
    ],
)
def test_state_is_determined_from_the_rows(heads: list[str], tables: bool, state: str) -> None:  # noqa: FBT001
    """Behind, ahead, forked, unknown, empty and unmanaged are distinguished."""
    position = revision_graph.position_of(heads, tables=tables)

    assert (position.state, position.heads) == (state, tuple(sorted(heads)))


def test_applied_counts_both_branches() -> None:
    """A database at the merge has run both 006."""
    assert revision_graph.applied(["007_merge_006_branches"]) == set(revisions()[:8])
    assert revision_graph.applied([ARTIFACTS]) == {*revisions()[:5], ARTIFACTS}
    assert revision_graph.applied([]) == frozenset()


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("head", HEAD),
        ("heads", HEAD),
        ("base", "base"),
        ("001_initial", "001_initial"),
        ("019", "019_fleet_tasks"),
        ("006_r", REPLAY),
    ],
)
def test_revision_is_found_by_its_prefix(name: str, revision: str) -> None:
    """The id, an unambiguous prefix, or a word."""
    assert revision_graph.find_revision(name) == revision


@pytest.mark.parametrize("name", ["", "00", "006", "021", "nonsense"])
def test_ambiguous_revision_is_not_found(name: str) -> None:
    """Several or no matches are refused, with the command that lists the revisions."""
    with pytest.raises(NotFoundError, match=f"revision {name}: ") as caught:
        revision_graph.find_revision(name)

    assert caught.value.hint == "sagewai-ops db history"
