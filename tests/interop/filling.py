"""Rows in all 55 tables, written by the real Sagewai; runs inside its environment only.

Every table that one of Sagewai's stores writes is written through that store. The rest (accounts
of its cloud, tables that no code fills) get a row through its own SQLAlchemy models. Every value
that can hold text holds the marker, so that two fills of one home do not collide and a reader can
distinguish them.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

PROJECTS = ("default", "mesa-日本")  # scopes of sessions, runs and learnings; any text is one
# On PostgreSQL, Sagewai 1.0.1 cannot write these: it sends text where the columns are uuid.
HARNESS = ("harness_audit", "harness_keys", "harness_policies", "harness_spend")
# Text for Sagewai's model, jsonb in PostgreSQL: it can only be left out.
LEFT_OUT = ("workspaces", "settings")
LEARNINGS_PER_PROJECT = 14  # some longer than the 12 bytes that vec0 keeps inline, some shorter
INSTANT = dt.datetime(2026, 3, 4, 5, 6, 7, 89012, tzinfo=dt.timezone.utc)


async def fill(marker: str) -> dict[str, int]:
    """Write at least one row into every table of the database that Sagewai resolves.

    On PostgreSQL into every table but HARNESS.

    Args:
        marker: ASCII letters, digits and dashes; another fill of the same home needs another.

    Returns:
        Rows of each table afterwards.
    """
    from sagewai.admin.secret_crypto import get_admin_crypto
    from sagewai.db import factory

    get_admin_crypto()  # makes the master key of a home that has none, as the server does
    await factory.ensure_schema()
    try:
        before = await counts()
        await fill_conversations(marker, count=5)
        await fill_learnings(marker)
        await _fill_tenancy(marker)
        await _fill_control_plane(marker)
        if factory.is_sqlite():
            await _fill_harness(marker)
        await _fill_gateway(marker)
        await _fill_connectors(marker)
        await _fill_telemetry(marker)
        await _fill_rest(marker, before)
        return await counts()
    finally:
        await factory.dispose_engine()


async def fill_conversations(marker: str, *, count: int) -> None:
    """Save sessions and workflow runs, `count` of each in every project."""
    from sagewai.core.session import SessionRecord
    from sagewai.core.state import StepStatus, WorkflowRun
    from sagewai.core.stores.session_store import PostgresSessionStore
    from sagewai.db import factory

    sessions = PostgresSessionStore()
    runs = await factory.get_workflow_store()
    for place, project in enumerate(PROJECTS):
        for number in range(count):
            await sessions.save(
                SessionRecord(
                    session_id=f"{marker}-session-{number}",
                    project_id=project,
                    agent_name=f"{marker}-agent",
                    messages=[{"role": "user", "content": f"{marker}: Grüße 🚀 {number}"}],
                    summary=f"{marker} summary {number}",
                    memory_keys=[f"{marker}-key"],
                    created_at=INSTANT.timestamp() + number,
                )
            )
            await runs.save_run(
                WorkflowRun(
                    workflow_name=f"{marker}-workflow",
                    # PostgreSQL knows a run by workflow and id, whatever its project.
                    run_id=f"{marker}-run-{place}-{number}",
                    status=StepStatus.COMPLETED,
                    input_data={"number": number, "marker": marker},
                    output_data=None,
                    started_at=INSTANT.timestamp(),
                    project_id=project,
                    effective_env_keys=["PATH", marker],
                )
            )


async def fill_learnings(marker: str) -> None:
    """Store learnings of several lengths in the vec0 table, where Sagewai can."""
    from sagewai.memory.global_memory_backends import SqliteVecBackend

    backend = SqliteVecBackend()
    for project in PROJECTS:
        for number in range(LEARNINGS_PER_PROJECT):
            text = f"{marker} {number}" if number % 2 else f"{marker} learning {number} " * 3
            await backend.add(project, text)


async def counts() -> dict[str, int]:
    """Count the rows of every table that Sagewai's models know, by name."""
    from sagewai.db import factory
    from sagewai.db.models import Base
    from sqlalchemy import func, select

    found = {}
    async with factory.get_engine().connect() as connection:
        for table in Base.metadata.sorted_tables:
            query = select(func.count()).select_from(table)
            found[table.name] = (await connection.execute(query)).scalar_one()
    return found


async def _fill_tenancy(marker: str) -> None:
    """Organisation, users, projects with data keys, and everything sealed with those."""
    from sagewai.admin.admin_resource_store import AdminResourceStore
    from sagewai.admin.api_token_store import ApiTokenStore
    from sagewai.admin.identity_store import IdentityStore
    from sagewai.admin.provider_store import PostgresProviderStore
    from sagewai.admin.state_file import AdminStateFile
    from sagewai.admin.tenant_agent_store import PostgresTenantAgentStore
    from sagewai.admin.tenant_audit import TenantAuditStore
    from sagewai.connections.bootstrap import build_connections_context
    from sagewai.connections.postgres_store import PostgresConnectionStore
    from sagewai.connections.protocols import get_protocol

    identity = IdentityStore()
    org = await identity.bootstrap_org(f"{marker} org", f"{marker}-org")
    user = await identity.create_user(
        org["id"], f"{marker}@example.org", password=f"{marker}-Password-9", role="org:owner"
    )
    project = await identity.create_project(org["id"], f"{marker}-project", f"{marker} project")
    await identity.create_invitation(
        org["id"], f"{marker}-guest@example.org", "org:member", user["id"]
    )
    await identity.issue_session(org["id"], user["id"])
    for scope in (project["id"], None):
        context = await identity.build_context(org["id"], user["id"], project_id=scope)
        await PostgresProviderStore(identity_store=identity).upsert(
            {"provider_name": f"{marker}-llm", "config": {"api_key": f"{marker}-sealed"}},
            ctx=context,
        )
        await AdminResourceStore().upsert_for(
            context, "budget_limit", f"{marker}-{scope}", {"marker": marker}, name=marker
        )
        await PostgresTenantAgentStore().create({"name": f"{marker}-agent"}, ctx=context)
        await TenantAuditStore().append(
            org["id"], scope, f"{marker}.filled", actor_user_id=user["id"], metadata={"cost": 1.5}
        )
        router = build_connections_context(AdminStateFile()).router
        sealed = router.encrypt(
            {"provider": "google", "client_id": marker, "client_secret": f"{marker}-sealed"},
            sensitive_field_paths=get_protocol("oauth2").sensitive_fields,
            connection_credentials_backend=None,
        )
        await PostgresConnectionStore().create(
            protocol="oauth2",
            project_id=scope,
            display_name=f"{marker} mail",
            tags=[marker],
            protocol_data=sealed,
        )
    await ApiTokenStore().create_for(context, name=marker, scopes={"read"}, project_id=None)


async def _fill_control_plane(marker: str) -> None:
    """Agents, workflows, budgets, guardrails, fleet, context documents."""
    from sagewai.admin.agent_store import PostgresAgentStore
    from sagewai.admin.postgres_budget import PostgresBudgetManager
    from sagewai.admin.postgres_guardrails import PostgresGuardrailStore
    from sagewai.admin.workflow_store import SavedWorkflowStore
    from sagewai.context.models import ContextChunk, ContextDocument, ContextScope
    from sagewai.context.pg_store import PostgresContextStore
    from sagewai.fleet import PostgresFleetRegistry, WorkerCapabilities
    from sagewai.fleet.task_store import PostgresTaskStore

    await PostgresAgentStore().save(f"{marker}-agent", {"name": f"{marker}-agent"})
    workflows = SavedWorkflowStore()
    for version in (1, 2):
        await workflows.save(name=f"{marker}-workflow", yaml_content=f"version: {version}\n")
    budgets = PostgresBudgetManager()
    await budgets.add_limit(
        agent_name=f"{marker}-agent", max_daily_usd=1.5, max_monthly_usd=30.0, action="stop"
    )
    await budgets.record_spend(agent_name=f"{marker}-agent", cost_usd=0.25)
    await PostgresGuardrailStore().upsert_config(f"{marker}-agent", "pii", config={"a": marker})
    registry = PostgresFleetRegistry()
    await registry.create_enrollment_key(f"{marker}-org", marker, "admin", allowed_pools=[marker])
    await registry.register_worker(
        f"{marker}-worker",
        f"{marker}-org",
        WorkerCapabilities(models_supported=["gpt-4o"], pool="default", labels={"a": marker}),
    )
    await PostgresTaskStore().enqueue(
        {"run_id": f"{marker}-task", "org_id": f"{marker}-org", "pool": "default", "payload": {}}
    )
    documents = PostgresContextStore()
    document = ContextDocument(
        id=f"{marker}-document",
        scope=ContextScope.ORG,
        scope_id="",
        title=f"{marker} Übersicht",
        tags=[marker, "zwei"],
    )
    await documents.save_document(document)
    chunk = ContextChunk(
        id=f"{marker}-chunk",
        document_id=document.id,
        scope=ContextScope.ORG,
        scope_id="",
        content=f"{marker} content",
        content_hash=f"{marker}-hash",
    )
    await documents.save_chunks([chunk])


async def _fill_harness(marker: str) -> None:
    """Keys, policies, spend and audit of the harness."""
    from sagewai.harness.models import HarnessAuditEvent, HarnessKey, PolicyRule, SpendRecord
    from sagewai.harness.postgres_store import PostgresHarnessStore

    harness = PostgresHarnessStore()
    key = HarnessKey(name=f"{marker}-key", key_hash=f"{marker}-hash", user_id=marker)
    await harness.create_key(key)
    await harness.create_policy(PolicyRule(name=f"{marker}-policy", blocked_models=["m"]))
    await harness.record_spend(SpendRecord(user_id=marker, cost_usd=0.5, key_id=key.id))
    await harness.record_audit(HarnessAuditEvent(event_type=f"{marker}.seen"))


async def _fill_gateway(marker: str) -> None:
    """Access tokens and triggers."""
    from sagewai.gateway.models import AccessToken
    from sagewai.gateway.pg_trigger_store import PostgresTriggerStore
    from sagewai.gateway.postgres_store import PostgresTokenStore
    from sagewai.gateway.triggers import EventFilter, Strategy, TriggerSpec

    await PostgresTokenStore().save(
        AccessToken(
            token_id=f"{marker}-token",
            token_hash=f"{marker}-token-hash",
            agent_name=f"{marker}-agent",
            grantor_id="admin",
            scopes=["read", marker],
            expires_at=INSTANT.timestamp(),
        )
    )
    trigger = TriggerSpec(
        source=marker,
        strategy=next(iter(Strategy)),
        filter=EventFilter(),
        target=f"{marker}-agent",
        action="chat",
    )
    await PostgresTriggerStore().save(f"{marker}-trigger", trigger)


async def _fill_connectors(marker: str) -> None:
    """Credentials of connectors (in the clear: Sagewai keeps them so), cursors, notifications."""
    from sagewai.connectors.pg_stores import (
        PostgresCredentialStore,
        PostgresCursorStore,
        PostgresCustomConnectorStore,
    )
    from sagewai.notifications.models import NotificationRecord
    from sagewai.notifications.postgres_store import PostgresNotificationStore

    await PostgresCredentialStore().put(f"{marker}-crm", {"api_key": f"{marker}-clear"})
    await PostgresCursorStore().set(f"{marker}-crm", "inbox", "cursor-1")
    await PostgresCustomConnectorStore().save({"name": f"{marker}-custom"})
    notifications = PostgresNotificationStore()
    await notifications.save_channel_config(
        {"project_id": marker, "channel_type": "slack", "webhook_url": f"https://{marker}/"}
    )
    await notifications.save_trigger_routing(
        {"project_id": marker, "trigger": "run.failed", "channel_type": "slack"}
    )
    await notifications.record(
        NotificationRecord(
            id=marker, trigger="run.failed", title=marker, body=marker, channel_type="slack"
        )
    )


async def _fill_telemetry(marker: str) -> None:
    """Runs, prompts, costs, guardrail events, directives, sealed audit, rate limits."""
    from sagewai.admin.postgres_analytics import PostgresAnalyticsStore
    from sagewai.admin.store import RunStore
    from sagewai.db import factory
    from sagewai.db.rate_limit import PostgresRateLimiter
    from sagewai.observability.prompt_store import PromptStore
    from sagewai.sealed.audit import AuditWriter
    from sagewai.sealed.directives.postgres_adapters import DirectiveEvaluationsAdapter

    run_id = await RunStore().save_run(
        agent_name=f"{marker}-agent", input_text=f"{marker} ?", cost_usd=0.125, tool_calls=[]
    )
    await PromptStore().save_prompt_log(run_id=run_id, agent_name=f"{marker}-agent", tags=[marker])
    analytics = PostgresAnalyticsStore()
    await analytics.record_cost(f"{marker}-agent", "gpt-4o", 0.0625, 77)
    await analytics.record_guardrail_event(f"{marker}-agent", "pii", detail=marker)
    await AuditWriter().emit(event_type=f"{marker}.revealed", details={"marker": marker})
    await DirectiveEvaluationsAdapter().insert_directive_evaluation(
        event_type="evaluated",
        decision_id=None,
        run_id=run_id,
        project_id=None,
        workflow_name=f"{marker}-workflow",
        policy_id=None,
        signal_kind=None,
        severity=None,
        details={"marker": marker},
    )
    await PostgresRateLimiter(factory.get_engine()).hit(marker, limit=10, window=60.0)


async def _fill_rest(marker: str, before: dict[str, int]) -> None:
    """Return one row, through Sagewai's own models, to every table that has no more than before."""
    from sagewai.db import factory
    from sagewai.db.models import Base
    from sqlalchemy import func, select

    engine = factory.get_engine()
    after = await counts()
    left_out = () if factory.is_sqlite() else HARNESS
    async with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            if after[table.name] > before[table.name] or table.name in left_out:
                continue
            row: dict[str, object] = {}
            for column in table.columns:
                if column.foreign_keys:
                    parent = next(iter(column.foreign_keys)).column
                    made_last = select(func.max(parent))
                    row[column.name] = (await connection.execute(made_last)).scalar_one()
                elif _numbers_itself(column, engine.dialect) or (
                    (table.name, column.name) == LEFT_OUT
                ):
                    continue
                elif column.primary_key and column.type.python_type is int:
                    row[column.name] = before[table.name] + 1
                else:
                    row[column.name] = _value_for(column, marker)
            await connection.execute(table.insert().values(row))


def _numbers_itself(column: Any, dialect: Any) -> bool:
    """Return whether this is a key that the database numbers: by sequence, or SQLite's rowid."""
    # Not each number in a key: the limiter's moment is one, and it deletes rows that have expired.
    if column is not column.table.autoincrement_column:
        return False
    return dialect.name == "postgresql" or bool(column.type.compile(dialect=dialect) == "INTEGER")


def _value_for(column: Any, marker: str) -> object:
    """Make a value of the column's Python type that includes where it belongs."""
    kind = column.type.python_type
    if kind is bool:
        return True
    if kind is int:
        return 7
    if kind is float:
        return 0.5
    if kind is dt.datetime:
        return INSTANT
    if kind is str:
        return f"{marker}-{column.name}"[: column.type.length]
    return {"marker": marker}
