"""Signals: those that wait, those that come before a run, and those that come too late."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagewai_ops.errors import InterruptedRunError
from sagewai_ops.process.signals import arrived, hold, signals_raise, too_late, uninterrupted


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: arrived(number))
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_is_raised_where_it_comes() -> None:
    """Nothing makes it wait."""
    with pytest.raises(InterruptedRunError) as caught:
        signal.raise_signal(signal.SIGUSR1)

    assert caught.value.signal_number == signal.SIGUSR1


def test_it_waits_for_the_outermost_block_and_comes_once() -> None:
    """What is in the block is done to its end."""
    done = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGUSR1)
                done.append("inner")
            done.append("outer")
        done.append("never")

    with pytest.raises(InterruptedRunError):
        work()
    with uninterrupted():
        done.append("again")

    assert done == ["inner", "outer", "again"]


def test_it_comes_too_where_the_block_fails() -> None:
    """The failure is told as its reason."""

    @uninterrupted()
    def work() -> None:
        signal.raise_signal(signal.SIGUSR1)
        raise ZeroDivisionError

    with pytest.raises(InterruptedRunError) as caught:
        work()

    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_another_thread_makes_nobody_wait() -> None:
    """Only the main thread is told of signals."""
    inside, over = threading.Event(), threading.Event()

    def work() -> None:
        with uninterrupted():
            inside.set()
            over.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(30)
    try:
        with pytest.raises(InterruptedRunError):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        over.set()
        thread.join()


def test_one_that_came_before_a_run_ends_it_where_it_begins() -> None:
    """The program had not got so far as to say anything."""
    hold()
    signal.raise_signal(signal.SIGTERM)
    second = signal.getsignal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError) as caught, signals_raise():
        pytest.fail("it began")

    assert caught.value.signal_number == signal.SIGTERM
    assert second is signal.SIG_DFL


def test_what_is_done_is_not_interrupted_any_more() -> None:
    """The run ends well, and the next one hears of signals again."""
    done = []
    with signals_raise():
        too_late()
        signal.raise_signal(signal.SIGTERM)
        done.append("told")

    with pytest.raises(InterruptedRunError), signals_raise():
        signal.raise_signal(signal.SIGTERM)

    assert done == ["told"]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As SIGHUP under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hold()
    with signals_raise():
        signal.raise_signal(signal.SIGHUP)

    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


def test_program_started_by_nohup_survives_a_hangup(tmp_path: Path) -> None:
    """The command completes, with exit code 0."""
    home = tmp_path / "home"

    done = subprocess.run(
        [
            *("/bin/sh", "-c", "trap '' HUP; exec \"$@\"", "sh"),
            *(sys.executable, "-c", AT_A_MOMENT.format(number="SIGHUP"), "starting"),
            *("--home", os.fspath(home), "init", "--json"),
        ],
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert (home / "db/sagewai.db").exists()


# The program with a signal at a moment; the rest of the command line is the run.
AT_A_MOMENT = """
import atexit, os, signal, sys
from sagewai_ops.cli import main as cli

def stop():
    os.kill(os.getpid(), signal.{number})

moment, *words = sys.argv[1:]
if moment == "starting":
    build = cli.build_app
    cli.build_app = lambda *given: (stop(), build(*given))[1]
elif moment == "telling":
    from sagewai_ops.cli import command as invocation
    render = invocation._render
    invocation._render = lambda *given: (stop(), render(*given))[1]
else:
    atexit.register(stop)
cli.main(words)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", ["starting", "telling", "leaving"])
def test_the_program_says_what_became_of_it_whenever_a_signal_comes(
    tmp_path: Path, moment: str, number: str
) -> None:
    """Before the run nothing was done; after it everything, and it is told and the code is 0."""
    home = tmp_path / "home"

    words = (moment, "--home", os.fspath(home), "init", "--json")

    done = subprocess.run(
        [sys.executable, "-c", AT_A_MOMENT.format(number=number), *words],
        capture_output=True,
        check=False,
        timeout=60,
    )

    document = json.loads(done.stdout)
    assert done.stderr == b""
    assert done.returncode == document["exit_code"]
    if moment == "starting":
        assert done.returncode == 128 + getattr(signal, number)
        assert document["error"]["code"] == "interrupted"
        assert not home.exists()
    else:
        assert done.returncode == 0
        assert "db/sagewai.db" in document["result"]["made"]
