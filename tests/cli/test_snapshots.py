"""`snapshots list|show|verify|extract` as people and scripts meet them."""

import json
import os
import stat
from pathlib import Path

import pytest

from home_builder import BuiltHome
from json_schemas import problems
from program import COMMAND, Answer, call, run, taken
from pseudo_terminal import watched
from small_homes import MARK, rows_of, small

COMMANDS = ("show", "verify")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltHome:
    """A home with artifacts, only read."""
    return small(tmp_path_factory.mktemp("snapshots") / "home", artifacts=True)


@pytest.fixture(scope="module")
def archive(built: BuiltHome) -> Path:
    """A clear snapshot of it, only read."""
    return taken(call("--home", built.root, "backup", "--json"))


@pytest.fixture(scope="module")
def sealed(built: BuiltHome, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An encrypted one that contains the key, and the file of its identity."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    directory = tmp_path_factory.mktemp("sealed")
    (directory / "identity.txt").write_text(str(identity))
    (directory / "identity.txt").chmod(0o600)
    answer = call("--home", built.root, "backup", "--json", "--to", directory / "snapshots",
                  "--key", "sealed", "--recipient", str(identity.to_public()))  # fmt: skip
    return taken(answer), directory / "identity.txt"


def test_list_shows_each_with_what_its_card_says(built: BuiltHome, archive: Path) -> None:
    """Without a terminal as well; JSON has all of it."""
    shown = run("--home", built.root, "snapshots", "list")
    listed = call("--home", built.root, "snapshots", "list", "--json")

    (row,) = listed.result["snapshots"]
    assert row["archive"] == str(archive)
    assert row["archive_bytes"] == archive.stat().st_size
    assert row["sequence"] == 1
    assert row["complete"] is True
    assert row["has_card"] is True
    assert row["home"] == str(built.root)
    assert row["id"] in shown.out
    assert shown.err == ""


def test_list_of_nothing_is_an_answer(tmp_path: Path) -> None:
    """Exit 0; the home need not exist to look into a directory."""
    answer = call("--home", tmp_path / "lost", "snapshots", "list", "--snapshots", tmp_path)

    assert answer == Answer(0, f"no snapshots in {tmp_path}\n", "")


def test_strangers_and_broken_cards_are_tolerated(archive: Path, tmp_path: Path) -> None:
    """They neither stop the list nor hide a snapshot, on a terminal's words and in JSON."""
    for number, card in enumerate(
        [b"", b"[1]", json.dumps({"archive": "?"}).encode(), b"\xff", None], start=1
    ):
        name = f"sagewai-2026010{number}T000000Z-0a1b2c.tar.zst"
        (tmp_path / name).write_bytes(b"no archive at all")
        if card is not None:
            (tmp_path / f"{name}.json").write_bytes(card)
    odd = "sagewai-99999999T999999Z-0a1b2c.tar.zst"
    (tmp_path / odd).hardlink_to(archive)
    (tmp_path / f"{odd}.json").write_text(
        json.dumps({"archive": odd, "home": ["\x1b[31m"], "schema_level": 3, "verified_at": {}})
    )
    (tmp_path / "notes\nof mine").touch()

    shown = call("snapshots", "list", "--snapshots", tmp_path)
    listed = call("snapshots", "list", "--snapshots", tmp_path, "--json")

    assert shown.code == listed.code == 0
    assert len(listed.result["snapshots"]) == 6
    assert "\x1b" not in shown.out
    broken = call("snapshots", "verify", "20260101", "--snapshots", tmp_path)
    assert broken.code == 16
    renamed = call("snapshots", "verify", "9999", "--snapshots", tmp_path)
    assert renamed.code == 16
    assert "forged, its content is snapshot" in renamed.err


@pytest.mark.parametrize("name", ["latest", "id", "prefix", "path", "file name"])
def test_a_snapshot_can_be_named_in_five_ways(built: BuiltHome, archive: Path, name: str) -> None:
    """All show the same."""
    identifier = archive.name[len("sagewai-") : -len(".tar.zst")]
    word = {
        "latest": "latest",
        "id": identifier,
        "prefix": identifier[:9],
        "path": str(archive),
        "file name": archive.name,
    }[name]

    assert (
        call("--home", built.root, "snapshots", "show", word, "--json").result["id"] == identifier
    )


def test_an_ambiguous_prefix_exits_2_and_an_unknown_one_10(tmp_path: Path) -> None:
    """Neither is guessed at."""
    home = small(tmp_path / "home")
    for _ in range(2):
        call("--home", home.root, "backup")

    ambiguous = call("--home", home.root, "snapshots", "verify", "2")
    unknown = call("--home", home.root, "snapshots", "verify", "1999")
    missing = call("snapshots", "verify", "/no/such.tar.zst")

    assert (ambiguous.code, unknown.code, missing.code) == (2, 10, 10)
    assert "ambiguous, 2 ids" in ambiguous.err


def test_show_tells_what_is_in_it_and_what_is_not(built: BuiltHome, archive: Path) -> None:
    """From the manifest: rows, key, what was left out; every member with `--files`."""
    result = call("snapshots", "show", archive, "--files", "--json").result

    assert result["format"] == 2
    assert result["authenticity"] == "not authenticated"  # without the home
    assert result["home"] == str(built.root)
    assert result["database"]["integrity"] == ["ok"]
    assert {"path": "secrets/master.key", "reason": "key", "detail": ""} in result["left_out"]
    paths = {row["path"]: row for row in result["files"]}
    assert paths["config/admin-state.json"]["size"] == built.admin_state.stat().st_size
    assert len(paths) == result["members"]
    shown = call("snapshots", "show", archive, "--files")
    assert "omitted   secrets/master.key: key" in shown.out
    assert "db/sagewai.db" in shown.out


def test_verify_is_silent_when_it_holds(archive: Path) -> None:
    """The exit code is enough for a script; `-v` and JSON report more."""
    assert run("snapshots", "verify", archive) == Answer(0, "", "")
    assert "every byte checked" in call("snapshots", "verify", archive, "-v").out
    assert call("snapshots", "verify", archive, "--json").result["members"] > 10


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("kind", ["clear", "encrypted"])
def test_verify_refuses_a_flipped_bit(
    archive: Path, sealed: tuple[Path, Path], tmp_path: Path, place: str, kind: str
) -> None:
    """Exit 16 with the way on, wherever it is; an encrypted header that lost its key is 12."""
    source, words = (archive, []) if kind == "clear" else (sealed[0], ["--identity", sealed[1]])
    content = bytearray(source.read_bytes())
    position = {"first": 200, "middle": len(content) // 2, "last": len(content) - 30}[place]
    content[position] ^= 1
    damaged = tmp_path / source.name
    damaged.write_bytes(content)

    answer = run("snapshots", "verify", damaged, *words)

    assert answer.code == 16 or (kind, place, answer.code) == ("encrypted", "first", 12)
    assert [line.split(": ")[1] for line in answer.err.splitlines()] == ["error", "hint"]


def test_verify_refuses_a_cut_archive(archive: Path, tmp_path: Path) -> None:
    """A download that stopped is damage."""
    cut = tmp_path / archive.name
    cut.write_bytes(archive.read_bytes()[:-1])

    assert call("snapshots", "verify", cut).code == 16


@pytest.mark.parametrize("command", COMMANDS)
def test_an_encrypted_one_needs_an_identity(
    sealed: tuple[Path, Path], tmp_path: Path, command: str
) -> None:
    """None or a wrong one exit 12; the right one opens it; a file without one exits 2."""
    import pyrage

    path, identity = sealed
    wrong = tmp_path / "wrong.txt"
    wrong.write_text(str(pyrage.x25519.Identity.generate()))
    (tmp_path / "noise.txt").write_text("no identity")

    codes = [
        call("snapshots", command, path, *words).code
        for words in (
            [],
            ["--identity", wrong],
            ["--identity", identity],
            ["--identity", wrong, "--identity", identity],
            ["--identity", tmp_path / "noise.txt"],
            ["--identity", tmp_path / "missing.txt"],
        )
    ]

    assert codes == [12, 12, 0, 0, 2, 10]


@pytest.mark.parametrize("kind", ["clear", "encrypted"])
def test_one_file_is_taken_out(
    built: BuiltHome, archive: Path, sealed: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    """With its bytes and its time, private, and nothing else."""
    words = [archive] if kind == "clear" else [sealed[0], "--identity", sealed[1]]
    target = tmp_path / "out"

    answer = run("snapshots", "extract", *words, "config/connections.json", "--to", target,
                 umask=0)  # fmt: skip

    assert answer == Answer(0, "", "")
    found = [path for path in target.rglob("*") if path.is_file()]
    assert found == [target / "config/connections.json"]
    assert found[0].read_bytes() == built.connections.read_bytes()
    assert found[0].stat().st_mtime_ns == built.connections.stat().st_mtime_ns
    assert stat.S_IMODE(found[0].stat().st_mode) == 0o600


def test_a_directory_is_taken_out_with_all_in_it(
    built: BuiltHome, archive: Path, tmp_path: Path
) -> None:
    """Links as links, and an end of `/` changes nothing."""
    answer = call("snapshots", "extract", archive, "data/artifacts/", "--to", tmp_path / "out",
                  "--json")  # fmt: skip

    assert answer.code == 0
    source = built.root / "data/artifacts"
    expected = sorted(os.path.relpath(path, built.root) for path in source.rglob("*"))
    target = tmp_path / "out"
    below = (target / "data/artifacts").rglob("*")
    assert sorted(os.path.relpath(path, target) for path in below) == expected
    assert answer.result["links"] == sum(path.is_symlink() for path in source.rglob("*"))


def test_everything_is_taken_out_if_no_path_is_given(
    built: BuiltHome, archive: Path, tmp_path: Path
) -> None:
    """The home without its key, and without the archive's own files."""
    call("snapshots", "extract", archive, "--to", tmp_path / "out")

    assert sorted([MARK, *os.listdir(tmp_path / "out")]) == sorted(os.listdir(built.root))
    assert not (tmp_path / "out/secrets/master.key").exists()
    assert rows_of(tmp_path / "out/db/sagewai.db") == rows_of(built.database)


@pytest.mark.parametrize("kind", ["full directory", "file"])
def test_a_target_that_is_not_empty_exits_15(archive: Path, tmp_path: Path, kind: str) -> None:
    """Nothing in it is touched."""
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")

    answer = run("snapshots", "extract", archive, "--to", target)

    assert answer.code == 15
    assert (target if kind == "file" else target / "mine").read_text() == "mine"


def test_a_path_that_is_not_in_it_exits_10_and_makes_nothing(archive: Path, tmp_path: Path) -> None:
    """A mistyped path yields nothing rather than a part."""
    answer = call("snapshots", "extract", archive, "config", "no/such", "--to", tmp_path / "out")

    assert answer.code == 10
    assert "no/such not found in it" in answer.err
    assert os.listdir(tmp_path) == []


def test_a_damaged_archive_yields_nothing(archive: Path, tmp_path: Path) -> None:
    """What was extracted until the damage is removed again."""
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / archive.name
    damaged.write_bytes(content)

    answer = call("snapshots", "extract", damaged, "--to", tmp_path / "out")

    assert answer.code == 16
    assert os.listdir(tmp_path) == [archive.name]


@pytest.mark.usefixtures("archive")
def test_no_word_of_a_table_is_cut_on_a_narrow_terminal(built: BuiltHome) -> None:
    """An id is there to be copied; a table too wide for the terminal is broken by it."""
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "60"}
    command = [*COMMAND, "--home", os.fspath(built.root), "snapshots", "list"]
    listed = call("--home", built.root, "snapshots", "list", "--json").result["snapshots"]

    code, shown = watched(command, environment)

    assert code == 0
    assert all(each["id"] in shown for each in listed)
    assert "020_fleet_task_lease" in shown
    assert "…" not in shown
    assert "tags" not in shown


def test_diff_without_names_compares_the_last_two(tmp_path: Path) -> None:
    """The last two of this home, the older one first, in text and in JSON."""
    built = small(tmp_path / "home")
    directory = tmp_path / "shared"
    words = ("--home", built.root, "snapshots", "diff", "--snapshots", directory)

    ids = []
    for number in range(3):
        (built.root / "note").write_text("x" * number)
        answer = call("--home", built.root, "backup", "--snapshots", directory, "--json")
        ids.append(answer.result["id"])
    shown = call(*words)
    answer = call(*words, "--json")

    assert shown.code == answer.code == 0
    assert shown.out.splitlines()[0] == f"{ids[1]} -> {ids[2]}"
    assert "  ~ note  content  1 B -> 2 B" in shown.out.splitlines()
    assert (answer.result["first"], answer.result["second"]) == (ids[1], ids[2])
    assert [change["path"] for change in answer.result["changed"]] == ["note"]
    assert problems("snapshots-diff", answer.result) == []


def test_diff_without_names_needs_two_snapshots(built: BuiltHome, tmp_path: Path) -> None:
    """Exit 10 and the command that creates one; a single name is ambiguous, exit 2."""
    directory = tmp_path / "shared"
    words = ("--home", built.root, "snapshots", "diff", "--snapshots", directory)

    none = call(*words)
    call("--home", built.root, "backup", "--snapshots", directory)
    single = call(*words, "--json")

    assert none.code == 10
    assert "hint: sagewai-ops backup" in none.err
    assert single.code == 10
    assert "1 found, two needed" in single.document["error"]["message"]
    assert call(*words, "latest").code == 2
