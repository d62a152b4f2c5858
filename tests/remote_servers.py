"""Real servers for remote places, on loopback: SeaweedFS, Azurite, rclone's gateway, sshd.

A server is started when the first test asks for it, one per process (so one per xdist worker), and
dies with that process. One that cannot be started fails the test: `make tools setup` installs all.
Buckets and directories are made per test, so tests do not see each other's objects.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import hmac
import http.client
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import pytest

PROGRAMS = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[1]
AZURITE = REPOSITORY / ".node" / "node_modules" / ".bin" / "azurite-blob"
START_SECONDS = 180.0  # under load; a server that has ended is noticed at once
ATTEMPTS = 5  # with new ports: another process may take one before the server does
KEY, SECRET = "AKIAREMOTETESTS00000", "secret-of-the-owner-0123456789"
# Of users with fewer rights.
WRITER, WRITER_SECRET = "AKIAWRITEONLY0000000", "secret-of-the-writer-0123456789"
READER, READER_SECRET = "AKIAREADONLY00000000", "secret-of-the-reader-0123456789"
# Azurite's own, in its documentation.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
_IDENTITIES = f"""{{"identities": [
 {{"name": "owner", "credentials": [{{"accessKey": "{KEY}", "secretKey": "{SECRET}"}}],
   "actions": ["Admin", "Read", "Write", "List"]}},
 {{"name": "writer", "credentials": [{{"accessKey": "{WRITER}", "secretKey": "{WRITER_SECRET}"}}],
   "actions": ["Write"]}},
 {{"name": "reader", "credentials": [{{"accessKey": "{READER}", "secretKey": "{READER_SECRET}"}}],
   "actions": ["Read", "List"]}}
]}}"""

_numbers = itertools.count(1)


class Server:
    """A program that runs until `stop`, with a directory of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix=f"ops-{name}-"))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start_on(
        self, count: int, command: Callable[[list[int]], list[str]], answers: Callable[[], bool]
    ) -> None:
        """Start the program on free ports, of which `self.port` becomes the first.

        Args:
            command: For so many ports.

        Raises:
            RuntimeError: It does not answer, or other processes take its ports; with its log.
        """
        for attempt in range(1, ATTEMPTS + 1):
            ports = _free_ports(count)
            self.port = ports[0]
            try:
                self._start(command(ports), answers)
            except RuntimeError as error:
                taken = ("address already in use", "EADDRINUSE", "Cannot bind any address")
                if attempt == ATTEMPTS or not any(words in str(error) for words in taken):
                    self.stop()
                    raise
            else:
                return

    def _start(self, command: list[str], answers: Callable[[], bool]) -> None:
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
                cwd=self.directory,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if answers():
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.05)
        self._end()
        log_text = (self.directory / "log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{self.name} does not answer: {log_text}")

    def _end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(30)

    def stop(self) -> None:
        """End it at once and remove its directory."""
        self._end()
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket or container of a server, for one test.

    Attributes:
        url: Of the place, without a prefix.
        port: Of the server.
        environment: What `open_store` needs, credentials of the owner included.
        remote: The table of the configuration that leads to the server.
    """

    url: str
    port: int
    environment: Mapping[str, str]
    remote: Mapping[str, str]
    name: str = field(default="")


class S3Server(Server):
    """An S3 server: SeaweedFS, or rclone's gateway, which ignores conditions and ranges."""

    def bucket(self, *, versioning: bool = False, lock_days: int = 0) -> Bucket:
        """Create an empty bucket.

        Args:
            versioning: Keep the versions of what is deleted or replaced.
            lock_days: Keep them for so long, against every user.
        """
        name = f"bucket-{os.getpid()}-{next(_numbers)}"
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if lock_days else {}
        self.request("PUT", f"/{name}", headers=headers)
        if versioning or lock_days:
            self.request(
                "PUT",
                f"/{name}",
                "versioning=",
                b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
            )
        if lock_days:
            rule = f"<Mode>COMPLIANCE</Mode><Days>{lock_days}</Days>"
            self.request(
                "PUT",
                f"/{name}",
                "object-lock=",
                "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>"
                f"<DefaultRetention>{rule}</DefaultRetention></Rule></ObjectLockConfiguration>".encode(),
            )
        endpoint = f"http://127.0.0.1:{self.port}"
        return Bucket(
            f"s3://{name}",
            self.port,
            s3_environment(endpoint),
            {"url": f"s3://{name}", "endpoint": endpoint, "region": "us-east-1"},
            name,
        )

    def request(
        self,
        method: str,
        path: str,
        query: str = "",
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Send a signed request, for what obstore does not offer.

        Raises:
            RuntimeError: It was refused.

        Source: Signature Version 4 of the S3 API.
        """
        now = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        digest = hashlib.sha256(body).hexdigest()
        signed = {
            "host": f"127.0.0.1:{self.port}",
            "x-amz-content-sha256": digest,
            "x-amz-date": now,
            **(headers or {}),
        }
        names = ";".join(sorted(signed))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        canonical = f"{method}\n{quote(path)}\n{query}\n{lines}\n{names}\n{digest}"
        to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{_sha256(canonical)}"
        key = f"AWS4{SECRET}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        signed["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={KEY}/{scope},SignedHeaders={names},Signature={signature}"
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, f"{path}?{query}" if query else path, body, signed)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return answer.status, content

    def pending_uploads(self, bucket: str) -> int:
        """Return the number of uploads in parts that were neither completed nor aborted."""
        return self.request("GET", f"/{bucket}", "uploads=")[1].count(b"<UploadId>")


def s3_environment(endpoint: str, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    """Return the variables that lead to a server, with a user's keys."""
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "HOME": "/nonexistent",
    }


def start_seaweedfs() -> S3Server:
    """Start SeaweedFS, with the three users of above."""
    server = S3Server("seaweedfs")
    (server.directory / "s3.json").write_text(_IDENTITIES)
    (server.directory / "data").mkdir()
    names: tuple[str, ...] = ("master.port", "volume.port", "filer.port")
    names += tuple(f"{name}.port.grpc" for name in ("s3", "master", "volume", "filer"))

    def answers() -> bool:
        # Only a written object shows that the volume server has joined.
        server.request("PUT", "/started")
        server.request("PUT", "/started/object", body=b"content")
        return True

    def command(ports: list[int]) -> list[str]:
        others = [f"-{name}={port}" for name, port in zip(names, ports[1:], strict=True)]
        return [
            *(str(PROGRAMS / "weed"), "-logtostderr=true", "server", "-dir=data"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={ports[0]}"),
            *("-s3.port.lance=0", "-s3.port.iceberg=0", "-s3.config=s3.json"),
            # Each bucket has volumes of its own; of this size there can be thousands.
            *("-volume.max=0", "-master.volumeSizeLimitMB=64", *others),
        ]

    server.start_on(1 + len(names), command, lambda: _without_refusal(answers))
    return server


def start_rclone() -> S3Server:
    """Start rclone's gateway to a directory."""
    server = S3Server("rclone")
    (server.directory / "data").mkdir()
    server.start_on(
        1,
        lambda ports: [
            *(str(PROGRAMS / "rclone"), "serve", "s3", "--addr", f"127.0.0.1:{ports[0]}"),
            *("--config", "/dev/null", "--auth-key", f"{KEY},{SECRET}", "data"),
        ],
        lambda: _without_refusal(lambda: server.request("GET", "/")[0] == 200),
    )
    return server


class AzureServer(Server):
    """Azurite, the emulator of Azure's blob service."""

    def __init__(self) -> None:
        super().__init__("azurite")
        self.start_on(
            1,
            lambda ports: [
                *("node", str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(ports[0])),
                *("--location", str(self.directory), "--silent", "--skipApiVersionCheck"),
            ],
            lambda: _without_refusal(lambda: bool(self.container())),
        )

    def container(self) -> Bucket:
        """Create an empty container."""
        name = f"container-{os.getpid()}-{next(_numbers)}"
        self._create(name)
        endpoint = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        url = f"az://{ACCOUNT}/{name}"
        environment = {"AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY, "HOME": "/nonexistent"}
        return Bucket(url, self.port, environment, {"url": url, "endpoint": endpoint}, name)

    def _create(self, name: str) -> None:
        """Send `Create Container`, signed with the key of the account."""
        now = f"{datetime.now(timezone.utc):%a, %d %b %Y %H:%M:%S GMT}"
        headers = {"x-ms-date": now, "x-ms-version": "2021-12-02", "Content-Length": "0"}
        # In the path of an emulator, the account is also the first part.
        to_sign = (
            f"PUT{chr(10) * 12}x-ms-date:{now}\nx-ms-version:2021-12-02\n"
            f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        )
        digest = hmac.digest(base64.b64decode(ACCOUNT_KEY), to_sign.encode(), "sha256")
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 201:
            raise RuntimeError(f"container {name}: {answer.status} {content[:300]!r}")


class SshServer(Server):
    """Debian's sshd with its SFTP server, and a client configuration that knows it as `backup`."""

    def __init__(self) -> None:
        super().__init__("sshd")
        for name in ("host", "user", "stranger"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / name],
                check=True,
            )
        if not os.geteuid():
            Path("/run/sshd").mkdir(exist_ok=True)  # made by Debian's service, which does not run
        self.start_on(1, self._command, lambda: _accepts(self.port))
        host_key = (self.directory / "host.pub").read_text()
        (self.directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")

    def _command(self, ports: list[int]) -> list[str]:
        (self.directory / "sshd_config").write_text(
            f"Port {ports[0]}\nListenAddress 127.0.0.1\nHostKey {self.directory}/host\n"
            f"AuthorizedKeysFile {self.directory}/user.pub\nPidFile none\nUsePAM no\n"
            "StrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n"
        )
        return ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.directory / "sshd_config")]

    def place(self, *, key: str = "user", known: bool = True) -> tuple[str, dict[str, str], Path]:
        """Create an empty directory.

        Args:
            key: Which the client offers; `stranger` is refused.
            known: Whether the client knows the server.

        Returns:
            The URL, the environment for `open_store`, and the directory.
        """
        # As ssh finds the user's home without HOME, its configuration is an option of a wrapper.
        programs = Path(tempfile.mkdtemp(dir=self.directory))
        directory = programs / "place"
        directory.mkdir()
        hosts = self.directory / "known_hosts" if known else "/dev/null"
        (programs / "config").write_text(
            f"Host backup\nHostName 127.0.0.1\nPort {self.port}\nIdentityAgent none\n"
            f"IdentityFile {self.directory}/{key}\nIdentitiesOnly yes\nUser {_user()}\n"
            f"UserKnownHostsFile {hosts}\nGlobalKnownHostsFile /dev/null\n"
            "StrictHostKeyChecking yes\n"
        )
        ssh = shutil.which("ssh")
        script = f'#!/bin/sh\nexec {ssh} -F {programs}/config "$@"\n'
        (programs / "ssh").write_text(script)
        (programs / "ssh").chmod(0o755)
        environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
        return f"sftp://backup{directory}", environment, directory


@pytest.fixture(scope="session")
def sshd() -> Iterator[SshServer]:
    """Debian's sshd."""
    server = SshServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """SeaweedFS."""
    server = start_seaweedfs()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rclone() -> Iterator[S3Server]:
    """The gateway of rclone."""
    server = start_rclone()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzureServer]:
    """Azurite."""
    server = AzureServer()
    yield server
    server.stop()


def local_ssh(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an `ssh` into the search path that starts the SFTP server on this machine."""
    programs = directory / "programs"
    programs.mkdir()
    (programs / "ssh").write_text("#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n")
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def _accepts(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        return connection.recv(4) == b"SSH-"


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _without_refusal(answers: Callable[[], bool]) -> bool:
    try:
        return answers()
    except RuntimeError:
        return False


def _free_ports(count: int) -> list[int]:
    """Return ports that nothing uses, all different."""
    sockets = [socket.socket() for _each in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
