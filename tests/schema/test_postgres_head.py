"""The data file with the PostgreSQL schema at the head: it is what the revisions result in."""

from __future__ import annotations

import asyncio

import postgres_head
from postgres_server import Server
from sagewai_ops.database import url as database_url
from sagewai_ops.schema.revision_graph import HEAD


def test_file_is_current(postgres: Server) -> None:
    """After a new revision, fixtures/postgres_head.py writes it again."""
    name = postgres.at(HEAD)
    url = database_url.parse(postgres.url(name))
    assert isinstance(url, database_url.PostgresUrl)

    head = asyncio.run(postgres_head.read_head(url))
    postgres.drop(name)

    assert postgres_head.render(head) == postgres_head.PATH.read_text(encoding="utf-8")
