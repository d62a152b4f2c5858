"""Pings of a monitoring service, and their failures."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sagewai_ops.errors import UsageError
from sagewai_ops.notify.healthcheck import Event, check_url, describe_host, ping
from watchdog import impostor, watchdog

SHORT_SECONDS = 0.3  # for servers that never answer


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect without the proxy of the developer's network."""
    monkeypatch.setenv("NO_PROXY", "*")


def test_each_event_has_a_path() -> None:
    """Before a query, and without a second slash."""
    with watchdog() as dog:
        for event in Event:
            assert ping(dog.url, event, "ü") == ""
        assert ping(f"{dog.url}/?create=1", Event.FAIL) == ""

    base = "/secret-uuid"
    assert dog.output == [
        (f"{base}/start", "ü"),
        (base, "ü"),
        (f"{base}/fail", "ü"),
        (f"{base}/fail?create=1", ""),
    ]


def test_end_of_a_long_body_is_sent() -> None:
    """The last lines have the reason."""
    with watchdog() as dog:
        ping(dog.url, Event.FAIL, "x" * 50_000 + "the end")

    ((_path, body),) = dog.output
    assert len(body) == 10_000
    assert body.endswith("xthe end")


@pytest.mark.parametrize("answer", [404, 500])
def test_refusal_is_reported_by_its_number(answer: int) -> None:
    """Without the page that comes with it."""
    with watchdog(answer=answer) as dog:
        assert ping(dog.url, Event.SUCCESS) == f"answered {answer}"


def test_refused_connection_is_reported() -> None:
    """A port without a server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert ping(f"http://127.0.0.1:{port}/x", Event.START) == "connection refused"


def test_unknown_host_is_reported() -> None:
    """The reserved one, RFC 6761; a machine may have no resolver."""
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
def test_invalid_response_is_reported(talk: Callable[[socket.socket], None]) -> None:
    """No answer, another protocol, or a closed connection."""
    with impostor(talk) as url:
        problem = ping(url, Event.START, timeout=SHORT_SECONDS)

    assert problem
    assert "secret" not in problem


def test_slow_response_ends_the_ping() -> None:
    """The timeout is for the whole ping; otherwise this test would hang."""
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
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def test_untrusted_certificate_is_reported(tmp_path: Path) -> None:
    """Nothing is sent: the server could be another."""
    with watchdog(certificate=_self_signed(tmp_path / "pem")) as dog:
        problem = ping(dog.url, Event.SUCCESS, "body")

    assert "self-signed" in problem or "self signed" in problem
    assert dog.output == []


@pytest.mark.parametrize("answer", [301, 302, 303])
def test_redirect_to_http_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    """The URL is a secret, and would be sent in clear."""
    certificate = _self_signed(tmp_path / "pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with (
        watchdog() as clear,
        watchdog(answer=answer, certificate=certificate, location=clear.url) as dog,
    ):
        problem = ping(dog.url, Event.SUCCESS, "body")

    assert problem == "redirected to another scheme, not followed"
    assert (len(dog.output), clear.output) == (1, [])


def test_plain_http_for_https_is_reported() -> None:
    """A wrong scheme is a likely mistake."""
    with watchdog() as dog:
        problem = ping(dog.url.replace("http:", "https:"), Event.START)

    assert problem
    assert dog.output == []


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
def test_invalid_url_is_refused_without_being_shown(url: str) -> None:
    """It can be a misplaced secret."""
    with pytest.raises(UsageError) as caught:
        check_url(url)

    assert "nter2" not in caught.value.message + caught.value.hint


def test_only_the_host_is_shown() -> None:
    """The path is a secret."""
    assert describe_host("https://hc-ping.com:444/secret?x=secret") == "ping of hc-ping.com"
