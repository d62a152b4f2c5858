"""Programs that print a secret: what is returned, what is refused, and that they end."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from sagewai_ops.errors import (
    InterruptedRunError,
    KeyMissingError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    UsageError,
)
from sagewai_ops.process import command_output
from sagewai_ops.process.command_output import MOST_BYTES, read_output, split_command
from sagewai_ops.process.signals import raise_on_signals

SECRET = "correct horse"


def _shell(script: str, *arguments: object) -> list[str]:
    return ["sh", "-c", script, "-", *map(str, arguments)]


def test_the_output_is_returned_as_it_is() -> None:
    """Also with bytes that are no text."""
    assert read_output(["printf", "a\\n\\377"], "command") == b"a\n\xff"


def test_no_shell_reads_the_words() -> None:
    """They are split as a shell does, and nothing is expanded."""
    words = split_command("echo \"a  b\" '$HOME' ~ `id` | tr a b; $(id)")

    assert read_output(words, "command") == b"a  b $HOME ~ `id` | tr a b; $(id)\n"


@pytest.mark.parametrize("text", ["", "  ", "''", "'a", 'a "'])
def test_a_text_without_a_program_is_refused(text: str) -> None:
    """A quotation that is not closed is a mistake, too."""
    with pytest.raises(ValueError, match=r"empty|quotation"):
        split_command(text)


def test_standard_input_is_empty_and_there_is_no_terminal() -> None:
    """A program that asks gets no answer, instead of the archive or the user's next command."""
    script = "cat; tty; (exec 3</dev/tty) 2>/dev/null || echo none"

    assert read_output(_shell(script), "command") == b"not a tty\nnone\n"


def test_only_the_standard_descriptors_are_inherited(tmp_path: Path) -> None:
    """Locks of the run end with it, not with what a program leaves running."""
    with open(tmp_path / "lock", "w", encoding="utf-8") as lock:
        os.set_inheritable(lock.fileno(), True)
        listed = read_output(["ls", "-l", "/proc/self/fd"], "command").decode()

    assert "lock" not in listed
    assert len(listed.splitlines()) == 1 + 3 + 1  # the total, the streams, the directory itself


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["/nowhere/tool", SECRET], NotFoundError, "/nowhere/tool: no such file"),
        (["/etc", SECRET], PermissionDeniedError, "/etc: permission denied"),
        (_shell("exit 7", SECRET), KeyMissingError, "sh: exit code 7"),
        (_shell("kill -9 $$", SECRET), KeyMissingError, "sh: ended by signal 9"),
        (
            _shell("echo $1 >&2; echo $1; exit 1", SECRET),
            KeyMissingError,
            "sh: exit code 1, with a message on stderr, which is not shown",
        ),
        (["yes", SECRET], UsageError, f"yes: prints more than {MOST_BYTES} bytes"),
    ],
)
def test_a_failure_names_the_program_alone(
    words: list[str], kind: type[OpsError], message: str
) -> None:
    """Neither its arguments nor what it printed: both may be the secret."""
    with pytest.raises(kind) as caught:
        read_output(words, "passphrase command")

    assert message in caught.value.message
    assert SECRET not in caught.value.message + caught.value.hint


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    """The kernel does not know its format, and no shell is asked."""
    script = tmp_path / "script"
    script.write_text("echo secret\n")
    script.chmod(0o700)

    with pytest.raises(UsageError, match="script: exec format error"):
        read_output([str(script)], "command")


def test_messages_of_a_program_that_succeeds_are_discarded(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """However many there are."""
    script = "head -c 1000000 /dev/zero >&2; echo key"

    assert read_output(_shell(script), "command") == b"key\n"
    assert capfd.readouterr() == ("", "")


def _ends(pid: int) -> bool:
    """Return whether a process ends within seconds: SIGKILL takes a moment."""
    for _turn in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("script", ["", "trap '' TERM; ", "exec >&- 2>&-; "])
def test_a_program_that_does_not_end_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    """With what it has started, and where it ignores SIGTERM or has closed its output."""
    monkeypatch.setattr(command_output, "SECONDS", 0.5)
    monkeypatch.setattr(command_output, "_END_SECONDS", 0.5)
    pids = tmp_path / "pids"

    with pytest.raises(KeyMissingError, match=r"no result within 0\.5 s, ended"):
        read_output(_shell(f"{script}sleep 60 & echo $$ $! >$1; wait; wait", pids), "command")

    assert all(map(_ends, map(int, pids.read_text().split())))


def test_what_a_program_leaves_running_does_not_delay_it() -> None:
    """An agent in the background has inherited its output."""
    started = time.monotonic()

    assert read_output(_shell("sleep 20 & echo key"), "command") == b"key\n"
    assert time.monotonic() - started < 15


def test_a_signal_ends_the_program(tmp_path: Path) -> None:
    """The interruption is raised once it has ended."""
    pid = tmp_path / "pid"

    def interrupt() -> None:
        while not pid.exists() or not pid.read_text().endswith("\n"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(InterruptedRunError), raise_on_signals():
        read_output(_shell("echo $$ >$1; exec sleep 60", pid), "command")
    thread.join()

    assert _ends(int(pid.read_text()))
