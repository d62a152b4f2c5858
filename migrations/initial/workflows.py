"""Workflows: runs, their event log, sessions, the playground, saved workflows."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    INTEGER,
    JSONB,
    TEXT,
    index,
    key,
    optional,
    reference,
    required,
    serial,
    stamp,
    unique,
    varchar,
)

TABLES = (
    "workflow_runs",
    "workflow_events",
    "sessions",
    "playground_agents",
    "saved_workflows",
    "saved_workflow_versions",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "workflow_runs",
        required("id", TEXT),
        required("project_id", TEXT, "default"),
        required("workflow_name", TEXT),
        required("run_id", TEXT),
        required("status", TEXT, "pending"),
        required("data", JSONB, "{}"),
        optional("owner_id", TEXT),
        optional("idempotency_key", varchar(255)),
        required("input", JSONB, "{}"),
        optional("output", JSONB),
        optional("error", TEXT),
        required("steps_completed", INTEGER, "0"),
        optional("steps_total", INTEGER),
        optional("priority", INTEGER, "0"),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        optional("target_pool", TEXT),
        optional("target_labels", JSONB),
        optional("target_worker_id", TEXT),
        optional("org_id", TEXT),
        optional("target_model", TEXT),
        required("input_encrypted", BOOLEAN, "false"),
        required("output_encrypted", BOOLEAN, "false"),
        key("id"),
    )
    index(
        "idx_wf_runs_target_pool", "workflow_runs", "target_pool", where="target_pool IS NOT NULL"
    )
    index(
        "idx_workflow_runs_idempotency_key",
        "workflow_runs",
        "idempotency_key",
        unique=True,
        where="idempotency_key IS NOT NULL",
    )
    index("idx_workflow_runs_name_status", "workflow_runs", "workflow_name", "status")
    index("idx_workflow_runs_project_id", "workflow_runs", "project_id")
    index("idx_workflow_runs_run_id", "workflow_runs", "run_id")
    index("idx_workflow_runs_status", "workflow_runs", "status")
    index("idx_workflow_runs_updated_at", "workflow_runs", "updated_at")
    index("idx_workflow_runs_workflow_name", "workflow_runs", "workflow_name")
    op.create_table(
        "workflow_events",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("run_id", TEXT),
        required("event_type", varchar(50)),
        required("data", JSONB, "{}"),
        stamp("created_at", null=True),
    )
    index("idx_workflow_events_project_id", "workflow_events", "project_id")
    index("idx_workflow_events_run_id", "workflow_events", "run_id")
    op.create_table(
        "sessions",
        required("session_id", TEXT),
        required("project_id", TEXT, "default"),
        required("agent_name", TEXT),
        optional("messages", JSONB, "[]"),
        optional("summary", TEXT, ""),
        optional("memory_keys", JSONB, "[]"),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        key("session_id", "project_id"),
    )
    index("idx_sessions_agent", "sessions", "agent_name")
    index("idx_sessions_project_id", "sessions", "project_id")
    index("idx_sessions_updated", "sessions", "updated_at")
    op.create_table(
        "playground_agents",
        required("name", varchar(255)),
        required("project_id", TEXT, "default"),
        required("spec", TEXT),
        stamp("created_at"),
        stamp("updated_at"),
        key("name"),
    )
    index("ix_playground_agents_project_id", "playground_agents", "project_id")
    op.create_table(
        "saved_workflows",
        required("id", TEXT),
        required("project_id", TEXT, "default"),
        required("name", TEXT),
        required("description", TEXT, ""),
        required("yaml_content", TEXT),
        required("version", INTEGER, "1"),
        required("is_active", BOOLEAN, "true"),
        optional("created_by", TEXT),
        stamp("created_at"),
        stamp("updated_at"),
        key("id"),
        unique("project_id", "name"),
    )
    index("idx_saved_workflows_name", "saved_workflows", "name")
    index("idx_saved_workflows_project", "saved_workflows", "project_id")
    op.create_table(
        "saved_workflow_versions",
        required("id", TEXT),
        required("workflow_id", TEXT),
        required("version", INTEGER),
        required("yaml_content", TEXT),
        stamp("created_at"),
        key("id"),
        unique("workflow_id", "version"),
        reference(["workflow_id"], "saved_workflows", ["id"], on_delete="CASCADE"),
    )
    index("idx_saved_workflow_versions_wf", "saved_workflow_versions", "workflow_id")
