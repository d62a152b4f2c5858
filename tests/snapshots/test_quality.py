"""Whether a snapshot is complete, sound and plausible."""

from dataclasses import replace

import pytest

from sagewai_ops.snapshots.quality import (
    Cause,
    Content,
    ContentCounter,
    Quality,
    assess,
    compare,
    recorded_content,
)

SOCKET = Cause("special", "data/agent.sock", "data/agent.sock: omitted")
ORPHAN = Cause("foreign-keys", "db/sagewai.db", "database: 1 rows with a broken reference")
BEFORE = Content(
    size_bytes=10_000,
    database_bytes=4_000,
    tables={"agents": 10, "runs": 0},
    documents={"admin-state.json": 1000},
    data_files=3,
    key="0123456789abcdef",
)


def test_a_snapshot_that_equals_the_last_one_is_plausible() -> None:
    """Nothing is missing."""
    assert list(compare(BEFORE, BEFORE)) == []


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"tables": {}}, "database: missing, had 10 rows in 2 tables"),
        ({"tables": {"agents": 4, "runs": 9}}, "table agents: 4 rows, had 10"),
        ({"tables": {"runs": 9}}, "table agents: missing, had 10 rows"),
        ({"documents": {}}, "admin-state.json: missing, had 1.0 kB"),
        ({"documents": {"admin-state.json": 400}}, "admin-state.json: 400 B, had 1.0 kB"),
        ({"key": ""}, "master key: missing, was 0123456789abcdef"),
        ({"data_files": 0}, "data: no files, had 3"),
        ({"size_bytes": 4_100, "database_bytes": 1_200}, "content: 4.1 kB, had 10.0 kB"),
    ],
)
def test_missing_and_shrunk_parts_are_named(change: dict[str, object], phrase: str) -> None:
    """Each change has one phrase, with both numbers."""
    assert list(compare(BEFORE, replace(BEFORE, **change))) == [phrase]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"tables": {"agents": 5, "runs": 0}},
        {"documents": {"admin-state.json": 500}},
        {"key": "fedcba9876543210"},
        {"data_files": 1},
        {"size_bytes": 6_500, "database_bytes": 500},
        {"engine": "postgresql", "tables": {}},
    ],
)
def test_smaller_losses_and_compaction_are_accepted(change: dict[str, object]) -> None:
    """Only a loss of more than half counts, and never one between two engines."""
    assert list(compare(BEFORE, replace(BEFORE, **change))) == []  # type: ignore[arg-type]


def test_a_cause_is_accepted_by_its_rule_or_its_name() -> None:
    """Then it is recorded, and the snapshot is good."""
    for accepted in ({"special", "foreign-keys"}, {"data/agent.sock", "db/sagewai.db"}):
        quality = assess([SOCKET], [ORPHAN], BEFORE, None, accepted=accepted)

        assert quality.is_good
        assert quality.accepted == (SOCKET, ORPHAN)
    assert assess([SOCKET], [ORPHAN], BEFORE, None, accepted={"data"}).properties == {
        "complete": False,
        "sound": False,
        "plausible": True,
    }


def test_an_accepted_change_is_plausible_and_recorded() -> None:
    """Without a change, nothing is recorded as accepted."""
    gone = replace(BEFORE, tables={})

    refused = assess([], [], gone, BEFORE, compared_with="x")
    intended = assess([], [], gone, BEFORE, compared_with="x", accepts_change=True)
    unchanged = assess([], [], BEFORE, BEFORE, compared_with="x", accepts_change=True)

    assert (refused.is_good, intended.is_good, unchanged.is_good) == (False, True, True)
    assert intended.card_facts["change_accepted"] is True
    assert "change_accepted" not in unchanged.card_facts
    assert intended.facts.changes == refused.changes


def test_only_documents_and_lasting_files_are_counted() -> None:
    """A cache may be empty at any time; a document has one name in both layouts."""
    counter = ContentCounter()
    for path in (
        "admin-state.json",
        "config/notes.json",
        "external/SAGEWAI_CONNECTIONS_FILE",
        "data/artifacts/a",
        "data/blueprint_cache/b",
    ):
        counter.add(path, 10)

    content = counter.content(None)

    assert content.documents == {"admin-state.json": 10, "connections.json": 10}
    assert (content.data_files, content.size_bytes) == (1, 50)


def test_a_malformed_record_counts_as_unknown() -> None:
    """Others may have written the metadata file."""
    card = {"content": {"tables": {"a": "x", "b": True}, "documents": 3}, "content_bytes": -1}

    assert recorded_content(card) == Content(tables={"a": 0, "b": 0})
    assert list(compare(recorded_content({}), BEFORE)) == []


def test_a_snapshot_without_causes_is_good() -> None:
    """Also the first one of a home, which is compared with none."""
    assert Quality().is_good
    assert Quality().card_facts == {"complete": True, "sound": True, "plausible": True}
