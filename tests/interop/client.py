"""A client of the real server's HTTP API, with nothing but the standard library.

`RESOURCES` names everything that the API lets an administrator create and list again. What it
creates contains a marker in its name, by which it is found in the listing.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TIMEOUT_SECONDS = 60.0
EMAIL = "operator@example.org"
PASSWORD = "Interop-Passwörd-42"
# Set when a row is used, not when it is written: a listing after a restart differs in these.
VOLATILE = frozenset({"last_used", "last_heartbeat", "last_seen", "updated_at"})

Body = dict[str, object]


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that the API creates and lists.

    Attributes:
        name: What it is called here.
        method: POST, or PUT where the API names the thing in the path.
        path: Where it is created; `{marker}` is for the marker.
        listing: Where all of them are listed.
        body: Makes the request from the marker.
        burst: Whether thousands of them may be made: nothing caps or trims their number.
    """

    name: str
    method: str
    path: str
    listing: str
    body: Callable[[str], Body]
    burst: bool = False


RESOURCES: Sequence[Resource] = (
    Resource(
        "projects",
        "POST",
        "/api/v1/projects",
        "/api/v1/projects",
        lambda marker: {"name": f"{marker} project", "slug": f"{marker}-project"},
    ),
    Resource(
        "providers",
        "POST",
        "/api/v1/providers",
        "/api/v1/providers",
        lambda marker: {
            "provider_name": f"{marker}-llm",
            "display_name": f"{marker} Größe",
            "config": {"api_key": f"{marker}-key", "nested": {"token": f"{marker}-token"}},
        },
        burst=True,
    ),
    Resource(
        "connections",
        "POST",
        "/api/v1/admin/connections/",
        "/api/v1/admin/connections/",
        lambda marker: {
            "protocol": "oauth2",
            "display_name": f"{marker} mail",
            "tags": [marker],
            "protocol_data": {
                "provider": "google",
                "client_id": marker,
                "client_secret": f"{marker}-secret",
                "redirect_uri": "http://127.0.0.1:8000/callback",
                "requested_scopes": ["mail"],
            },
        },
        burst=True,
    ),
    Resource(
        "profiles",
        "POST",
        "/api/v1/admin/sealed/profiles",
        "/api/v1/admin/sealed/profiles",
        lambda marker: {
            "id": f"{marker}-profile",
            "name": f"{marker} profile",
            "env": {"REGION": marker},
            "secrets": {"TOKEN": f"{marker}-sealed", "PASSWORD": "zwei\nZeilen 🔑"},
        },
        burst=True,
    ),
    Resource(
        "agents",
        "POST",
        "/playground/agent",
        "/playground/agents",
        lambda marker: {"name": f"{marker}-agent", "model": "gpt-4o", "strategy": "react"},
        burst=True,
    ),
    Resource(
        "prompt logs",
        "POST",
        "/api/v1/prompts/logs",
        "/api/v1/prompts/logs",
        lambda marker: {"agent_name": f"{marker}-agent", "input_text": "?", "tags": [marker]},
    ),
    Resource(
        "workflows",
        "POST",
        "/api/v1/workflow-registry",
        "/api/v1/workflow-registry",
        lambda marker: {"name": f"{marker}-workflow", "yaml_content": "steps: []\n"},
    ),
    Resource(
        "workflow runs",
        "POST",
        "/api/v1/workflows/enqueue",
        "/workflows/history",
        lambda marker: {
            "workflow_name": f"{marker}-workflow",
            "execution_mode": "bare",
            "input_data": {"marker": marker},
        },
    ),
    Resource(
        "budgets",
        "POST",
        "/api/v1/budget/limits",
        "/api/v1/budget/limits",
        lambda marker: {"agent_name": f"{marker}-agent", "max_daily_usd": 1.5, "action": "stop"},
    ),
    Resource(
        "guardrails",
        "PUT",
        "/api/v1/guardrails/configs/{marker}-agent",
        "/api/v1/guardrails/configs",
        lambda marker: {"guardrail_type": "pii", "enabled": True, "config": {"word": marker}},
    ),
    Resource(
        "tokens",
        "POST",
        "/api/v1/tokens/",
        "/api/v1/tokens/",
        lambda marker: {"name": f"{marker} token", "scopes": ["read"]},
    ),
    Resource(
        "connectors",
        "POST",
        "/api/v1/connectors/{marker}-crm",
        "/api/v1/connectors",
        lambda marker: {"api_key": f"{marker}-clear"},
    ),
    Resource(
        "notification channels",
        "POST",
        "/api/v1/notifications/channels",
        "/api/v1/notifications/channels",
        lambda marker: {"name": f"{marker} mail", "type": "email", "smtp_password": marker},
    ),
    Resource(
        "notification triggers",
        "POST",
        "/api/v1/notifications/triggers",
        "/api/v1/notifications/triggers",
        lambda marker: {"trigger": f"{marker}.failed", "channel_type": "email"},
    ),
    Resource(
        "triggers",
        "POST",
        "/api/v1/triggers",
        "/api/v1/triggers",
        lambda marker: {"source": marker, "target": f"{marker}-agent", "action": "chat"},
    ),
    Resource(
        "datasets",
        "POST",
        "/api/v1/eval/datasets",
        "/api/v1/eval/datasets",
        lambda marker: {"name": f"{marker} set", "cases": [{"input": "1+1", "expected": "2"}]},
    ),
    Resource(
        "workers",
        "POST",
        "/api/v1/fleet/register",
        "/api/v1/fleet/workers",
        lambda marker: {"name": f"{marker}-worker", "models": ["gpt-4o"], "labels": {"a": marker}},
    ),
    Resource(
        "enrollment keys",
        "POST",
        "/api/v1/fleet/enrollment-keys",
        "/api/v1/fleet/enrollment-keys",
        lambda marker: {"name": f"{marker} key", "pools": ["default"]},
    ),
    Resource(
        "tasks",
        "POST",
        "/api/v1/fleet/tasks",
        "/api/v1/fleet/tasks?limit=200",
        lambda marker: {"pool": marker, "payload": {"marker": marker}},
        burst=True,
    ),
)


# What the API reports of rows that it does not create itself: spending, sessions, runs, statistics.
PAGES: Sequence[str] = (
    "/admin/runs",
    "/admin/sessions",
    "/api/v1/analytics/agents",
    "/api/v1/analytics/costs",
    "/api/v1/analytics/models",
    "/api/v1/analytics/usage",
    "/api/v1/notifications/history",
    "/api/v1/training/stats",
    "/workflows/stats",
)


class RequestError(RuntimeError):
    """The server answered with another status than success; the message holds its answer."""


class Client:
    """A session with one server, as an administrator.

    Args:
        url: Address of the server, without a slash at its end.
        headers: Of another client, to go on with its session.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        self.headers = {"Content-Type": "application/json"} | dict(headers or {})

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
        """Send a request and return the JSON of the answer.

        Raises:
            RequestError: The status is not one of success.
        """
        request = urllib.request.Request(  # noqa: S310 - the address of our own server
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers=self.headers,
        )
        try:
            with urllib.request.urlopen(  # noqa: S310 - as above
                request, timeout=TIMEOUT_SECONDS
            ) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()[:500].decode(errors="replace")
            raise RequestError(f"{method} {path}: {error.code} {text}") from error

    def set_up(self) -> None:
        """Create the organisation and its administrator, as the first visitor does."""
        self.call(
            "POST",
            "/api/v1/setup",
            {"org_name": "Interop", "admin_email": EMAIL, "admin_password": PASSWORD},
        )

    def log_in(self, email: str = EMAIL, password: str = PASSWORD) -> None:
        """Log in, and send the session's token from then on.

        Raises:
            RequestError: The server refuses the password.
        """
        credentials = {"email": email, "password": password}
        answer = self.call("POST", "/api/v1/auth/login", credentials)
        assert isinstance(answer, dict)
        self.headers["Authorization"] = f"Bearer {answer['access_token']}"

    def create(self, resource: Resource, marker: str) -> None:
        """Create one thing that contains the marker."""
        self.call(resource.method, resource.path.format(marker=marker), resource.body(marker))

    def create_each(self, marker: str) -> None:
        """Create one of everything that the API offers."""
        for resource in RESOURCES:
            self.create(resource, marker)

    def listings(self) -> dict[str, object]:
        """List everything, by the name of the resource, without what changes by itself."""
        return {
            resource.name: _steady(self.call("GET", resource.listing)) for resource in RESOURCES
        }

    def pages(self) -> dict[str, object]:
        """Return the content of the pages of `PAGES`, without what changes by itself."""
        return {page: _steady(self.call("GET", page)) for page in PAGES}

    def reveal(self, profile: str, secret: str) -> object:
        """Return the clear value of a sealed profile's secret; 30 of them an hour."""
        path = f"/api/v1/admin/sealed/profiles/{profile}/reveal/{secret}"
        answer = self.call("POST", path)
        assert isinstance(answer, dict)
        return answer["value"]


def _steady(value: object) -> object:
    """Leave out what the server changes when a thing is merely used."""
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return sorted((_steady(inner) for inner in value), key=lambda inner: json.dumps(inner))
    return value
