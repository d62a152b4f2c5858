"""SFTP, against Debian's sshd and a server that attacks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_servers import SshServer
from sagewai_ops.errors import (
    InterruptedRunError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    UsageError,
)
from sagewai_ops.process.signals import raise_on_signals
from sagewai_ops.remote.address import parse_address
from sagewai_ops.remote.sftp import SftpStore, ssh_arguments
from sagewai_ops.remote.store import Deletion

MIB = 1 << 20
CONTENT = random.Random(16).randbytes(5 * MIB + 17)


@pytest.fixture
def place(sshd: SshServer) -> Iterator[tuple[SftpStore, Path]]:
    """A store and its directory."""
    url, environment, directory = sshd.place()
    store = SftpStore(parse_address(url), environment, timeout_seconds=10)
    yield store, directory
    store.close()


def upload(store: SftpStore, name: str, content: bytes = CONTENT) -> None:
    """Upload a file in pieces that do not fit the requests."""
    with store.upload(name, len(content)) as writer:
        for start in range(0, len(content), 100_001):
            writer.write(content[start : start + 100_001])
        writer.finish()


def test_a_file_is_written_and_read(place: tuple[SftpStore, Path]) -> None:
    """What was put is listed, read by range and as a stream, and deleted; it is private."""
    store, directory = place
    assert store.list() == []
    assert store.put("card.json", b"content")
    upload(store, "archive")

    assert [(each.name, each.size_bytes) for each in store.list()] == [
        ("archive", len(CONTENT)),
        ("card.json", 7),
    ]
    assert store.facts("archive") == store.list()[0]
    assert store.facts("missing") is None
    assert store.read("archive", MIB - 5, 70_000) == CONTENT[MIB - 5 : MIB - 5 + 70_000]
    assert store.read("archive", 3, 0) == b""
    pieces = list(store.stream("archive"))
    assert b"".join(pieces) == CONTENT
    assert max(map(len, pieces)) <= 2 * MIB
    assert (directory / "archive").stat().st_mode & 0o777 == 0o600
    assert store.delete("card.json") is Deletion.DELETED
    assert store.delete("card.json") is Deletion.DELETED
    assert os.listdir(directory) == ["archive"]


def test_an_existing_file_is_replaced_only_on_request(place: tuple[SftpStore, Path]) -> None:
    """A second put is refused and changes nothing, and leaves no other file."""
    store, directory = place
    assert store.put("marker", b"first")

    assert not store.put("marker", b"later")
    assert store.read("marker", 0, 5) == b"first"
    assert store.put("marker", b"final", replace=True)
    assert store.read("marker", 0, 5) == b"final"
    assert os.listdir(directory) == ["marker"]


def test_an_upload_that_fails_leaves_nothing(place: tuple[SftpStore, Path]) -> None:
    """At an exception, and without `finish`, the directory is empty; the connection works."""
    store, directory = place

    def fail() -> None:
        with store.upload("archive", 0) as writer:
            writer.write(CONTENT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.upload("archive", 0) as writer:
        writer.write(CONTENT)

    assert os.listdir(directory) == []
    assert store.put("card", b"x")


def test_a_stream_that_is_left_early_keeps_the_connection(place: tuple[SftpStore, Path]) -> None:
    """Replies that nothing waits for are dropped."""
    store, _directory = place
    upload(store, "archive")
    stream = store.stream("archive")
    next(stream)

    stream.close()

    assert store.read("archive", 0, 5) == CONTENT[:5]
    assert store._channel is not None
    assert store._channel._replies == {}


def test_an_upload_is_not_visible_before_it_is_complete(place: tuple[SftpStore, Path]) -> None:
    """Uploads in progress are not listed; one given up long ago is removed by a later one."""
    store, directory = place
    old = directory / ".other.0123abcd.partial"
    old.write_bytes(b"x")
    os.utime(old, (1, 1))
    recent = directory / ".other.4567abcd.partial"
    recent.write_bytes(b"x")

    with store.upload("archive", 0) as writer:
        writer.write(b"content")
        assert store.list() == []
        writer.finish()

    assert sorted(os.listdir(directory)) == [recent.name, "archive"]


def test_a_range_beyond_the_end_is_an_error(place: tuple[SftpStore, Path]) -> None:
    """Fewer bytes than were asked for are never returned."""
    store, _directory = place
    store.put("small", b"12345")

    with pytest.raises(RemoteError, match="ends at byte 5, not at 8"):
        store.read("small", 3, 5)


def test_what_is_no_file_is_not_an_object(place: tuple[SftpStore, Path]) -> None:
    """Links, pipes and directories are neither listed nor stated."""
    store, directory = place
    (directory / "link").symlink_to("/etc/passwd")
    (directory / "directory").mkdir()
    os.mkfifo(directory / "pipe")

    assert store.list() == []
    assert store.facts("link") is None


def test_a_name_that_leads_elsewhere_is_refused(place: tuple[SftpStore, Path]) -> None:
    """No name leaves the directory."""
    store, _directory = place
    for name in ("", ".", "..", "../other", "a/b", "/a", "a\0b"):
        with pytest.raises(RemoteError, match="not a name"):
            store.read(name, 0, 1)


def test_a_missing_directory_is_an_error_with_10(sshd: SshServer) -> None:
    """A mistyped path is not created; the hint creates it."""
    url, environment, directory = sshd.place()
    store = SftpStore(parse_address(f"{url}/typo"), environment)

    with pytest.raises(NotFoundError) as caught:
        store.list()
    with pytest.raises(NotFoundError):
        store.put("card", b"x")
    with pytest.raises(NotFoundError):
        upload(store, "archive")
    store.close()

    assert "mkdir -p" in caught.value.hint
    assert os.listdir(directory) == []


@pytest.mark.skipif(not os.geteuid(), reason="root may read everything")
def test_rights_that_do_not_suffice_are_denied(place: tuple[SftpStore, Path]) -> None:
    """A directory that cannot be written is an error with 14."""
    store, directory = place
    directory.chmod(0o500)

    with pytest.raises(PermissionDeniedError):
        store.put("card", b"x")


def test_a_key_that_is_refused_is_an_error_with_14(sshd: SshServer) -> None:
    """Nothing is asked; ssh's own words are shown."""
    url, environment, _directory = sshd.place(key="stranger")

    with pytest.raises(PermissionDeniedError, match=r"Permission denied \(publickey\)") as caught:
        SftpStore(parse_address(url), environment).list()

    assert caught.value.hint == "ssh backup"


def test_a_host_that_is_not_known_is_an_error_with_19(sshd: SshServer) -> None:
    """A server is not accepted at the first sight of its key."""
    url, environment, _directory = sshd.place(known=False)

    with pytest.raises(RemoteError, match="Host key verification failed"):
        SftpStore(parse_address(url), environment).list()


def test_ssh_is_needed() -> None:
    """Without the program, the hint installs it."""
    with pytest.raises(UsageError, match="not installed"):
        SftpStore(parse_address("sftp://host/srv"), {"PATH": "/nonexistent"})


def test_arguments_cannot_become_options() -> None:
    """The host follows `--`, user and port have options of their own."""
    assert ssh_arguments(parse_address("sftp://me@host:22/srv"))[-8:] == [
        *("-p", "22", "-l", "me"),
        *("-s", "--", "host", "sftp"),
    ]


def test_a_connection_that_is_lost_is_an_error_with_19(place: tuple[SftpStore, Path]) -> None:
    """Where ssh is killed during an upload, its file is removed over a new connection."""
    store, directory = place

    def lose() -> None:
        with store.upload("archive", 0) as writer:
            writer.write(CONTENT)
            assert store._process is not None
            store._process.kill()
            while True:
                writer.write(CONTENT)

    with pytest.raises(RemoteError):
        lose()

    assert os.listdir(directory) == []


def test_a_signal_does_not_wait_for_the_server(tmp_path: Path) -> None:
    """SIGTERM ends a call at once, though the server does not answer; ssh ends too."""
    store = hostile(tmp_path, "time.sleep(60)")
    started = time.monotonic()

    signal.signal(signal.SIGALRM, lambda *_given: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(InterruptedRunError), raise_on_signals():
        store.list()
    process = store._process
    store.close()

    assert process is not None
    assert process.returncode is not None
    assert time.monotonic() - started < 20


def hostile(directory: Path, program: str, *, timeout_seconds: float = 5.0) -> SftpStore:
    """Return a store whose ssh is a program that answers what a test wants."""
    script = directory / "ssh"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, struct, sys, time\n"
        "def packet(kind, content):\n"
        "    os.write(1, struct.pack('>IB', len(content) + 1, kind) + content)\n"
        "def take():\n"
        "    head = sys.stdin.buffer.read(4)\n"
        "    return sys.stdin.buffer.read(int.from_bytes(head, 'big')) if head else sys.exit()\n"
        "def string(text): return struct.pack('>I', len(text)) + text\n"
        "def version(): take(); packet(2, struct.pack('>I', 3))\n"
        "def id(): return take()[1:5]\n"
        f"{program}\n"
        "time.sleep(30)\n"
    )
    script.chmod(0o755)
    address = parse_address("sftp://host/srv")
    return SftpStore(address, {"PATH": str(directory)}, timeout_seconds=timeout_seconds)


FILE = "struct.pack('>IQI', 5, 1000, 0o100600)"  # attributes: size and mode


@pytest.mark.parametrize(
    "program",
    [
        "os.write(1, b'Welcome to the server, please log in first')",
        "os.write(1, b'\\xff' * 100)",
        "take(); packet(2, struct.pack('>I', 6))",
        "take(); packet(2, b'')",
        "take(); packet(101, b'1234')",
        "version(); take(); packet(102, struct.pack('>I', 99) + string(b'h'))",
        "version(); n = id(); packet(102, n + string(b'h')); packet(102, n + string(b'h'))",
        "version(); packet(104, id() + string(b'h'))",
        "version(); packet(102, id() + struct.pack('>I', 2**31) + b'h')",
        "version(); os.write(1, struct.pack('>IB', 2**31, 102))",
        "version(); packet(102, id())",
        "version(); packet(101, id() + struct.pack('>I', 77))",
        "sys.stderr.write('x' * 100000); sys.exit(255)",
        "version(); sys.exit(0)",
        "time.sleep(30)",
        "version(); time.sleep(30)",
        # More data than was asked for, and none.
        "version(); packet(102, id() + string(b'h')); packet(103, id() + string(b'x' * 999))",
        "version(); packet(102, id() + string(b'h')); packet(103, id() + string(b''))",
    ],
)
def test_a_server_that_attacks_is_an_error_with_19(tmp_path: Path, program: str) -> None:
    """Whatever a server sends, the outcome is an error, in bounded time and memory."""
    store = hostile(tmp_path, program, timeout_seconds=1)

    with pytest.raises(RemoteError) as caught:
        store.read("archive", 0, 100)
    store.close()

    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500


def test_names_of_a_server_cannot_lead_elsewhere(tmp_path: Path) -> None:
    """A name with a path is not listed; others are, however odd."""
    names = "b'../up', b'a/b', b'.', b'good', b'o\\x1b[2J\\xff'"
    store = hostile(
        tmp_path,
        "version(); packet(102, id() + string(b'h'))\n"
        f"names = [{names}]\n"
        f"entries = b''.join(string(n) + string(n) + {FILE} for n in names)\n"
        "packet(104, id() + struct.pack('>I', len(names)) + entries)\n"
        "for _ in range(8): packet(101, id() + struct.pack('>I', 1))\n"
        "packet(101, id() + struct.pack('>I', 0))",
    )

    found = [each.name for each in store.list()]
    store.close()

    assert found == ["good", "o\x1b[2J\udcff"]


def test_text_of_a_server_cannot_control_the_terminal(tmp_path: Path) -> None:
    """What ssh writes to its standard error is one printable line."""
    store = hostile(tmp_path, "sys.stderr.write('a\\x1b[2Jb\\n'); sys.exit(255)")

    with pytest.raises(OpsError) as caught:
        store.list()

    assert caught.value.message == "sftp://host/srv: a\\x1b[2Jb"


def test_a_write_that_is_refused_is_an_error(tmp_path: Path) -> None:
    """A full disk during an upload is an error, not a file that is too short."""
    full = "struct.pack('>I', 4) + string(b'No space left') + string(b'')"
    store = hostile(
        tmp_path,
        "version()\nwhile True:\n    request = take()\n    n = request[1:5]\n"
        "    if request[0] in (3, 11): packet(102, n + string(b'h'))\n"
        "    elif request[0] == 12: packet(101, n + struct.pack('>I', 1))\n"
        f"    elif request[0] == 8: packet(105, n + {FILE})\n"
        f"    else: packet(101, n + ({full} if request[0] == 6 else struct.pack('>I', 0)))",
    )

    with pytest.raises(RemoteError, match="No space left"):
        upload(store, "archive")
    store.close()


def test_a_server_without_extensions_is_used(
    place: tuple[SftpStore, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without links and replacing renames, a file is created exclusively, or removed first."""
    store, directory = place
    for name in ("sftp_files._LINK", "sftp_files._REPLACE", "sftp._FSYNC"):
        monkeypatch.setattr(f"sagewai_ops.remote.{name}", b"unknown@example.org")

    assert store.put("card", b"first")
    assert not store.put("card", b"later")
    assert store.put("card", b"final", replace=True)
    upload(store, "archive")

    assert (directory / "card").read_bytes() == b"final"
    assert (directory / "archive").read_bytes() == CONTENT
    assert sorted(os.listdir(directory)) == ["archive", "card"]


def test_a_killed_program_ends_its_ssh(sshd: SshServer) -> None:
    """After SIGKILL, ssh ends because its input is closed."""
    url, environment, directory = sshd.place()
    program = (
        "import os, sys, time\n"
        "from sagewai_ops.remote.address import parse_address\n"
        "from sagewai_ops.remote.sftp import SftpStore\n"
        "store = SftpStore(parse_address(sys.argv[1]), dict(os.environ))\n"
        "with store.upload('archive', 0) as writer:\n"
        "    writer.write(bytes(100000))\n"
        "    print(store._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, url],
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert child.stdout is not None
    ssh = int(child.stdout.readline())
    child.kill()
    child.wait()
    child.stdout.close()

    deadline = time.monotonic() + 20
    while Path(f"/proc/{ssh}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    assert not Path(f"/proc/{ssh}").exists()
    assert all(name.endswith(".partial") for name in os.listdir(directory))
