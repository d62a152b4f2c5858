"""`snapshots prune|undelete` and `backup --keep-*` as people and scripts meet them; their JSON."""

import os
from pathlib import Path

import pytest

from home_builder import BuiltHome
from json_schemas import problems
from other_process import running
from program import PATIENCE_SECONDS, Answer, call, run, started, taken
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.trash import list_trash
from small_homes import small

pytestmark = pytest.mark.in_memory  # many snapshots are made durable

HOLD = """
import pathlib
sys.path.remove("")
from sagewai_ops.fs import locks
with locks.exclusive(pathlib.Path(sys.argv[1])):
    pause()
"""


@pytest.fixture
def built(tmp_path: Path) -> BuiltHome:
    """A small home."""
    return small(tmp_path / "home")


def backup(built: BuiltHome, *words: object) -> Answer:
    """Create a snapshot, answered in JSON that has its schema's shape."""
    answer = call("--home", built.root, "backup", "--json", *words)
    if answer.document["result"] is not None:
        schema = "dry-run" if "--dry-run" in words else "backup"
        assert problems(schema, answer.result) == []
    return answer


def prune(built: BuiltHome, *words: object) -> Answer:
    """Prune, answered in JSON that has its schema's shape."""
    answer = call("--home", built.root, "snapshots", "prune", "--json", *words)
    if answer.document["result"] is not None:
        assert problems("snapshots-prune", answer.result) == []
    return answer


def export_directory(built: BuiltHome) -> Path:
    """Return the snapshot directory of a home."""
    return built.root.with_name("home.snapshots")


def count(built: BuiltHome) -> tuple[int, int]:
    """Count the snapshots in the directory and in its trash."""
    return len(catalog.list_snapshots(export_directory(built))), len(
        list_trash(export_directory(built))
    )


def test_a_dry_run_says_why_each_stays_or_goes(built: BuiltHome) -> None:
    """In words and in JSON, the same; nothing is touched."""
    first, *_others = [taken(backup(built, "--tag", f"t{number}")) for number in range(3)]

    answer = prune(built, "--keep-last", 1, "--keep-tag", "t1", "--dry-run")
    shown = run("--home", built.root, "snapshots", "prune", "--keep-last", "1", "--dry-run").out

    assert [row["reasons"] for row in answer.result["snapshots"]] == [
        [],
        ["tag t1"],
        ["newest", "newest good", "last 1"],
    ]
    assert answer.result["removed"] == [first.name[8:-8]]
    assert answer.result["dry_run"] is True
    assert "no rule keeps it" in shown
    assert "newest, newest good, last 1" in shown
    assert "2 of 3 would be moved to" in shown
    assert "0 in it would be permanently removed" in shown
    assert count(built) == (3, 0)


def test_a_newest_that_was_cut_leaves_the_whole_one(built: BuiltHome) -> None:
    """`list`, `status` and the plan report it; what is restored of the other is all there."""
    for _ in range(3):
        newest = taken(backup(built))
    os.truncate(newest, newest.stat().st_size // 2)

    answer = prune(built, "--keep-last", 1)
    listed = call("--home", built.root, "snapshots", "list")

    assert [row["reasons"] for row in answer.result["snapshots"]] == [
        [],
        ["newest of the right size", "newest good of the right size", "last 1"],
        ["newest", "newest good", "wrong size: 1 of 3"],
    ]
    assert ["wrong size" in line for line in listed.out.splitlines()[1:3]] == [False, True]
    assert f"{newest}: size differs" in call("--home", built.root, "status").err
    left = answer.result["snapshots"][1]["id"]
    assert call("--home", built.root, "snapshots", "verify", left).code == 0


def test_a_prune_is_silent_and_undelete_reverts_it(built: BuiltHome) -> None:
    """Without a terminal a success prints nothing; the list reports how many are in the trash."""
    for _number in range(3):
        backup(built)

    assert run("--home", built.root, "snapshots", "prune", "--keep-last", "1") == Answer(0, "", "")
    listed = call("--home", built.root, "snapshots", "list")
    back = call("--home", built.root, "snapshots", "undelete", "--all", "--json")

    assert "2 more in .trash" in listed.out
    assert problems("snapshots-undelete", back.result) == []
    assert len(back.result["brought_back"]) == 2
    assert count(built) == (3, 0)
    assert "moved to" in call("--home", built.root, "snapshots", "prune", "--keep-last", 1,
                                "-v").out  # fmt: skip
    identifier = list_trash(export_directory(built))[0].id
    assert "1 snapshots restored" in call("--home", built.root, "snapshots", "undelete",
                                              identifier, "-v").out  # fmt: skip
    assert count(built) == (2, 1)


@pytest.mark.parametrize(
    "words",
    [
        ["prune"],
        ["prune", "--keep-last", "0"],
        ["prune", "--keep-within", "soon"],
        ["prune", "--keep-last", "-1"],
        ["undelete"],
        ["undelete", "--all", "2026"],
    ],
)
def test_what_asks_for_nothing_or_for_nonsense_exits_2(built: BuiltHome, words: list[str]) -> None:
    """Nothing is removed."""
    backup(built)

    assert call("--home", built.root, "snapshots", *words).code == 2
    assert count(built) == (1, 0)


def test_a_backup_prunes_once_its_snapshot_stands(built: BuiltHome) -> None:
    """The exit code is that of the backup; the result reports both."""
    for _number in range(3):
        backup(built)

    answer = backup(built, "--keep-last", 2)
    assert taken(answer).exists()
    shown = call("--home", built.root, "backup", "--keep-daily", 1, "-v").out

    assert answer.code == 0
    assert answer.result["retention"]["applied"] is True
    assert len(answer.result["retention"]["removed"]) == 2
    assert "removed   2 older ones to .trash, 2 from .trash permanently" in shown
    assert count(built) == (1, 2)


def test_dry_run_of_a_backup_names_the_snapshots_that_it_prunes(built: BuiltHome) -> None:
    """With the new snapshot counted, and those in the trash."""
    for _number in range(3):
        backup(built)
    prune(built, "--keep-last", 2)
    words = ("--keep-last", 2, "--keep-tag", "spare")

    steps = backup(built, "--dry-run", *words).result["steps"]
    retention = backup(built, *words).result["retention"]

    assert len(retention["removed"]) == len(retention["purged"]) == 1
    assert steps[-2:] == [
        *(f"move snapshot {name} to .trash, no rule keeps it" for name in retention["removed"]),
        *(f"remove snapshot {name} from .trash permanently" for name in retention["purged"]),
    ]


def test_dry_run_of_an_incomplete_backup_prunes_nothing(built: BuiltHome) -> None:
    """As the run itself."""
    backup(built)
    os.mkfifo(built.root / "data" / "pipe")

    steps = backup(built, "--dry-run", "--keep-last", 1).result["steps"]

    assert steps[-1] == "remove no older snapshot, as this one is incomplete"


def test_a_backup_that_lacks_something_prunes_nothing(built: BuiltHome) -> None:
    """It keeps its own exit code, and reports that the rules were not applied."""
    for _number in range(2):
        backup(built)
    os.mkfifo(built.root / "data-pipe")

    answer = backup(built, "--keep-last", 1)

    assert answer.code == 3
    assert answer.result["retention"]["applied"] is False
    assert any(line.startswith("retention: not applied") for line in answer.document["warnings"])
    assert count(built) == (3, 0)


def test_a_backup_stands_when_its_prune_fails(built: BuiltHome) -> None:
    """Exit 3 with the reason; the snapshot is whole."""
    backup(built)
    (export_directory(built) / ".trash").touch()

    answer = backup(built, "--keep-last", 1)

    assert answer.code == 3
    assert "not a directory" in answer.result["retention"]["problem"]
    assert taken(answer).exists()
    assert call("--home", built.root, "snapshots", "verify", "latest").code == 0


def test_a_pipe_has_no_directory_to_prune(built: BuiltHome) -> None:
    """Exit 2, before anything is taken."""
    answer = run("--home", built.root, "backup", "--output", "-", "--keep-last", "1")

    assert answer.code == 2
    assert answer.out == ""


def test_two_homes_in_one_directory_prune_their_own(built: BuiltHome, tmp_path: Path) -> None:
    """Each run of each home removes none of the other's."""
    other = small(tmp_path / "other", seed=5)
    other.admin_state.unlink()
    directory = tmp_path / "shared"
    for _number in range(2):
        for home in (built, other):
            assert backup(home, "--to", directory, "--keep-last", 1).code in (0, 3)

    counts: dict[str, int] = {}
    for item in catalog.list_snapshots(directory):
        counts[str(item.card["home"])] = counts.get(str(item.card["home"]), 0) + 1
    assert counts == {str(built.root): 1, str(other.root): 1}


def test_a_held_directory_exits_11_and_names_the_holder(built: BuiltHome) -> None:
    """Process, machine, command and start; `--wait` waits, readers do not."""
    for _number in range(2):
        backup(built)
    with running(HOLD, str(export_directory(built))) as other:
        answer = call("--home", built.root, "snapshots", "prune", "--keep-last", 1)

        assert answer.code == 11
        assert f"locked by pid {other.pid} (" in answer.err
        assert f"on {os.uname().nodename}" in answer.err
        assert "since 20" in answer.err
        for words in (["list"], ["verify", "latest"], ["diff", "latest", "latest"]):
            assert call("--home", built.root, "snapshots", *words).code == 0
        with started("--home", built.root, "snapshots", "prune", "--keep-last", "1",
                     "--wait", str(PATIENCE_SECONDS)) as waiting:  # fmt: skip
            other.kill()
            assert waiting.wait(PATIENCE_SECONDS) == 0

    assert count(built) == (1, 1)


def test_the_results_of_the_others_have_their_schemas(built: BuiltHome, tmp_path: Path) -> None:
    """`list`, `show`, `verify`, `extract` and `diff`, of an archive and of a tree."""
    backup(built, "--tag", "first")
    backup(built, "--format", "directory")
    prefix = ("--home", built.root, "snapshots")

    for name, words in (
        ("list", ["--rebuild"]),
        ("show", ["latest", "--files"]),
        ("show", ["tree"]),
        ("verify", ["latest"]),
        ("diff", ["latest", "tree"]),
        ("extract", ["latest", "--to", tmp_path / "out"]),
    ):
        answer = call(*prefix, name, *words, "--json")
        assert problems("envelope", answer.document) == []
        assert problems(f"snapshots-{name}", answer.result) == [], name
