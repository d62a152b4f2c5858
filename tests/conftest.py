"""What every test gets: an empty environment, a user's home of its own, PostgreSQL on request."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from memory_directory import memory_directory
from postgres_server import _postgres_session, database, every_postgres, postgres
from remote_servers import azurite, rclone, seaweedfs, sshd
from sagewai_ops.archive import age_passphrase

__all__ = [
    "_postgres_session",
    "azurite",
    "database",
    "every_postgres",
    "postgres",
    "rclone",
    "seaweedfs",
    "sshd",
]
# Of the developer: their home and database, and the credentials that obstore would read.
_HIDDEN = ("SAGEWAI_", "AWS_", "AZURE_", "GOOGLE_")

# No test asserts on time, not even through Hypothesis: a busy machine is no failure.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

CORE = Path(__file__).parent / "core.txt"  # written by .ci/select_core.py
MISSING_FROM_CORE = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer --core and --rest."""
    parser.addoption("--core", action="store_true", help="run the tests that core.txt names")
    parser.addoption("--rest", action="store_true", help="run the others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the core or the others; test_promises.py fails where one does not exist."""
    if not config.getoption("--core") and not config.getoption("--rest"):
        return
    core = set(CORE.read_text(encoding="utf-8").splitlines())
    found = {item.nodeid for item in items}
    files = {name.partition("::")[0] for name in found}
    config.stash[MISSING_FROM_CORE] = [
        name
        for name in sorted(core - found)
        for file in (name.partition("::")[0],)
        if file in files or not (CORE.parent.parent / file).exists()
    ]
    selected = [item for item in items if (item.nodeid in core) == config.getoption("--core")]
    config.hook.pytest_deselected(items=list(set(items) - set(selected)))
    items[:] = selected


def pytest_configure() -> None:
    """Ignore what the caller ignores (`nohup`, a background job) by a handler of this process.

    Children inherit SIG_IGN, but not a handler: the programs under test get the default.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


@pytest.fixture(scope="session")
def missing_from_core(pytestconfig: pytest.Config) -> list[str]:
    """Return the names in core.txt that are no test, of the files that this run collected."""
    return pytestconfig.stash.get(MISSING_FROM_CORE, [])


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """Hide the developer's own home, keys and database from every test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_HIDDEN) or name == "DATABASE_URL":
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _own_user_home(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Return every test a user's home of its own.

    Interop tests keep the developer's: the package installer's cache is there.
    """
    if request.node.get_closest_marker("interop") is None:
        monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("user")))
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Yield pytest's own directory, or one in memory to tests with the mark `in_memory`."""
    if request.node.get_closest_marker("in_memory") is None:
        yield tmp_path
        return
    with memory_directory() as directory:
        yield directory


@pytest.fixture(autouse=True)
def _fast_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the passphrases of this process cheap: the work factor takes a second each time."""
    monkeypatch.setattr(age_passphrase, "WORK_FACTOR_LOG2", 10)


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Undo what a program that ran in this process did with signals."""
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
