"""What the real Sagewai finds in a home, as one JSON object; runs inside its environment only.

Secrets are opened with Sagewai's own code, so that a wrong or missing key shows as None or as an
error and never passes. Lists are sorted by their content, not by the order of a query.
"""

from __future__ import annotations

import json
from typing import Any


async def read_home() -> dict[str, object]:
    """Read everything that Sagewai keeps, through its stores.

    Returns:
        By kind, lists of JSON objects: providers, connections, profiles, sessions, workflow_runs,
        learnings, tenants (with their providers, connections and audit chains), counts.
    """
    from sagewai.db import factory

    from interop import filling

    await factory.ensure_schema()
    try:
        found: dict[str, object] = {
            "providers": _providers(),
            "connections": _connections(),
            "profiles": await _profiles(),
            "sessions": await _sessions(),
            "workflow_runs": await _workflow_runs(),
            "learnings": await _learnings(),
            "tenants": await _tenants(),
            "counts": await filling.counts(),
        }
    finally:
        await factory.dispose_engine()
    return found


def _providers() -> list[object]:
    from sagewai.admin.state_file import AdminStateFile

    return _sorted(AdminStateFile().list_providers_decrypted())


def _connections() -> list[object]:
    """Connections of the file, with what the master key seals opened."""
    from sagewai.admin.state_file import AdminStateFile
    from sagewai.connections.bootstrap import build_connections_context

    state = AdminStateFile()
    context = build_connections_context(state)
    projects = [None, *(project["id"] for project in state.list_projects() if "id" in project)]
    projects += [project["slug"] for project in state.list_projects()]
    records = {record.id: record for project in projects for record in context.store.list(project)}
    return _sorted(_opened(record, context.router) for record in records.values())


def _opened(record: Any, router: Any) -> dict[str, object]:
    from sagewai.connections.protocols import get_protocol

    opened = router.decrypt(
        record.protocol_data,
        sensitive_field_paths=get_protocol(record.protocol).sensitive_fields,
        connection_credentials_backend=record.credentials_backend,
    )
    return {
        "id": record.id,
        "protocol": record.protocol,
        "project_id": record.project_id,
        "display_name": record.display_name,
        "protocol_data": opened,
    }


async def _profiles() -> list[object]:
    from sagewai.sealed.refs import ProfileRef, resolve_backend

    backend = resolve_backend(ProfileRef(scheme="builtin", path=""))
    names = [profile.id for profile in await backend.list_profiles()]
    return _sorted([(await backend.get_profile(name)).model_dump(mode="json") for name in names])


async def _sessions() -> list[object]:
    from sagewai.core.stores.session_store import PostgresSessionStore
    from sagewai.db.models import SessionModel

    store = PostgresSessionStore()
    records = []
    for (project,) in await _distinct(SessionModel.project_id):
        records += await store.list_sessions(project_id=project or None, limit=1_000_000)
    return _sorted(record.model_dump(mode="json") for record in records)


async def _workflow_runs() -> list[object]:
    from sagewai.core.context import ProjectContext
    from sagewai.db import factory
    from sagewai.db.models import WorkflowRunModel

    store = await factory.get_workflow_store()
    runs: list[dict[str, object]] = []
    for project, name in await _distinct(
        WorkflowRunModel.project_id, WorkflowRunModel.workflow_name
    ):
        with ProjectContext(project_id=project):
            runs += [run.to_dict() for run in await store.list_runs(name)]
    return _sorted(runs)


async def _learnings() -> list[object]:
    """Every learning with the answer to a search for its own words: it must be the nearest."""
    from sagewai.memory.sqlite_vec import SqliteVecMemory

    everything = SqliteVecMemory()
    try:
        rows = (
            everything._connect()
            .execute("SELECT id, project_id, content FROM vec_learnings")
            .fetchall()
        )
    finally:
        await everything.close()
    found: list[dict[str, object]] = []
    memories = {project: SqliteVecMemory(project_id=project) for _, project, _ in rows}
    for identity, project, content in rows:
        nearest = await memories[project].retrieve(content, top_k=1)
        found.append(
            {"id": identity, "project": project, "content": content, "found": nearest == [content]}
        )
    for memory in memories.values():
        await memory.close()
    return _sorted(found)


async def read_facts() -> list[object]:
    """Every learning of the home, and whether Sagewai's PostgreSQL memory finds it by its words.

    Source of the database: SAGEWAI_DATABASE_URL.
    """
    import os

    import asyncpg
    from sagewai.memory.global_memory_backends import PostgresBackend
    from sagewai.memory.sqlite_vec import SqliteVecMemory

    memory = SqliteVecMemory()
    query = "SELECT project_id, content FROM vec_learnings"
    try:
        rows = memory._connect().execute(query).fetchall()
    finally:
        await memory.close()
    async with asyncpg.create_pool(os.environ["SAGEWAI_DATABASE_URL"], min_size=1) as pool:
        backend = PostgresBackend(connection_pool=pool)
        await backend.ensure_schema()  # adds nothing to what an export made
        found = [
            {
                "scope": scope,
                "content": content,
                "found": content in await backend.retrieve(scope, content, top_k=len(rows)),
                "count": await backend.count(scope),
            }
            for scope, content in rows
        ]
        await backend.add("new", "a fact that came after the move")
    return _sorted(found)


async def _tenants() -> list[object]:
    """Organisations of the database with all that their keys seal, and their audit chains."""
    from sagewai.admin.identity_store import IdentityStore
    from sagewai.admin.provider_store import PostgresProviderStore
    from sagewai.admin.state_file import AdminStateFile
    from sagewai.admin.tenancy import single_org_context
    from sagewai.admin.tenant_audit import TenantAuditStore
    from sagewai.connections.bootstrap import build_connections_context
    from sagewai.connections.postgres_store import PostgresConnectionStore

    identity = IdentityStore()
    router = build_connections_context(AdminStateFile()).router
    tenants = []
    for org in await identity.list_orgs():
        scopes = [None, *(project["id"] for project in await identity.list_projects(org["id"]))]
        for scope in scopes:
            context = single_org_context(org_id=org["id"], project_id=scope)
            providers = PostgresProviderStore(identity_store=identity)
            verified = await TenantAuditStore().verify_chain(context, project_id=scope)
            tenants.append(
                {
                    "org": org["slug"],
                    "project": scope,
                    "providers": _sorted(await providers.list_decrypted(ctx=context)),
                    "connections": _sorted(
                        _opened(record, router)
                        for record in await PostgresConnectionStore().list(scope)
                    ),
                    "audit": repr(verified),
                }
            )
    return _sorted(tenants)


async def _distinct(*columns: Any) -> list[Any]:
    from sagewai.db import factory
    from sqlalchemy import select

    async with factory.get_engine().connect() as connection:
        return list((await connection.execute(select(*columns).distinct())).all())


def _sorted(values: Any) -> list[object]:
    """Make values comparable: plain JSON, in the order of their text."""
    texts = sorted(json.dumps(value, sort_keys=True, default=str) for value in values)
    return [json.loads(text) for text in texts]
