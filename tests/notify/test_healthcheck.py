"""What is told to a watchdog, and everything that can go wrong with one."""

from __future__ import annotations

import datetime as dt
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sagewai_ops.errors import UsageError
from sagewai_ops.notify.healthcheck import Event, checked, ping, shown
from watchdog import impostor, watchdog

SHORT_SECONDS = 0.3  # how long a test waits for who never answers


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the other side itself, whatever the developer's network needs."""
    monkeypatch.setenv("NO_PROXY", "*")


def test_each_event_has_a_path() -> None:
    """In front of a query, and without a second slash."""
    with watchdog() as dog:
        for event in Event:
            assert ping(dog.url, event, "ü") == ""
        assert ping(f"{dog.url}/?create=1", Event.FAIL) == ""

    base = "/secret-uuid"
    assert dog.told == [
        (f"{base}/start", "ü"),
        (base, "ü"),
        (f"{base}/fail", "ü"),
        (f"{base}/fail?create=1", ""),
    ]


def test_the_end_of_a_long_body_is_told() -> None:
    """What happened last says why."""
    with watchdog() as dog:
        ping(dog.url, Event.FAIL, "x" * 50_000 + "the end")

    ((_path, body),) = dog.told
    assert len(body) == 10_000
    assert body.endswith("xthe end")


@pytest.mark.parametrize("answer", [404, 500])
def test_a_refusal_is_told_by_its_number(answer: int) -> None:
    """The page that comes with it is nobody's business."""
    with watchdog(answer=answer) as dog:
        assert ping(dog.url, Event.SUCCESS) == f"answered {answer}"


def test_nobody_there_is_told() -> None:
    """A port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert ping(f"http://127.0.0.1:{port}/x", Event.START) == "connection refused"


def test_a_name_that_does_not_exist_is_told() -> None:
    """The reserved one, RFC 6761; a resolver may be missing altogether."""
    assert ping("http://nothing.invalid/x", Event.START, timeout=SHORT_SECONDS) != ""


def _silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def _rude(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def _vanishing(connection: socket.socket) -> None:
    connection.recv(65536)


@pytest.mark.parametrize("talk", [_silent, _rude, _vanishing])
def test_what_is_no_watchdog_is_told(talk: Callable[[socket.socket], None]) -> None:
    """It never answers, speaks something else, or hangs up."""
    with impostor(talk) as url:
        problem = ping(url, Event.START, timeout=SHORT_SECONDS)

    assert problem
    assert "secret" not in problem


def test_a_dripping_answer_ends_the_ping_all_the_same() -> None:
    """The whole of it has the time that it has; this test would hang else."""
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not done.wait(0.02):
            connection.sendall(b"x")

    with impostor(drip) as url:
        problem = ping(url, Event.START, timeout=SHORT_SECONDS)
        done.set()

    assert problem == "no answer in 0 s"


def _self_signed(path: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def test_a_certificate_that_nobody_vouches_for_is_told(tmp_path: Path) -> None:
    """It is not believed: anybody could stand there."""
    with watchdog(certificate=_self_signed(tmp_path / "pem")) as dog:
        problem = ping(dog.url, Event.SUCCESS, "body")

    assert "self-signed" in problem or "self signed" in problem
    assert dog.told == []


def test_clear_text_on_a_tls_port_is_told() -> None:
    """A wrong scheme is a likely mistake."""
    with watchdog() as dog:
        problem = ping(dog.url.replace("http:", "https:"), Event.START)

    assert problem
    assert dog.told == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "ftp://h/hunter2",
        "file:///hunter2",
        "http:///hunter2",
        "https://u:hunter2@h/",
        "https://h:hunter2/",
        "https://[hunter2/",
        "https://h/hunter2 x",
        "https://h/hunter2\nx",
        "https://h/hünter2",
    ],
)
def test_what_is_no_url_is_refused_without_being_shown(url: str) -> None:
    """It may be a secret in the wrong place."""
    with pytest.raises(UsageError) as caught:
        checked(url)

    assert "nter2" not in caught.value.message + caught.value.hint


def test_only_the_host_is_ever_shown() -> None:
    """The path is what makes one a member."""
    assert shown("https://hc-ping.com:444/secret?x=secret") == "ping of hc-ping.com"
