"""Workflows: their runs, the saved ones and their versions, sessions, the playground."""

from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Index, Table, UniqueConstraint

from sagewai_ops.schema.tables.columns import (
    BOOLEAN,
    FLOAT,
    INSTANT,
    INTEGER,
    JSON_BINARY,
    JSON_TEXT,
    STRINGS,
    TEXT,
    key,
    metadata,
    one_of,
    optional,
    partial,
    postgres_only,
    required,
    stamp,
    varchar,
)

workflow_runs = Table(
    "workflow_runs",
    metadata,
    key("id", TEXT),
    required("project_id", TEXT, "default"),
    required("workflow_name", TEXT),
    required("run_id", TEXT),
    required("status", TEXT, "pending"),
    required("data", JSON_BINARY),
    optional("owner_id", TEXT),
    optional("idempotency_key", varchar(255)),
    required("input", JSON_BINARY),
    optional("output", JSON_BINARY),
    optional("error", TEXT),
    required("steps_completed", INTEGER, "0"),
    optional("steps_total", INTEGER),
    optional("priority", INTEGER, "0"),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    optional("target_pool", TEXT),
    optional("target_labels", JSON_BINARY),
    optional("target_worker_id", TEXT),
    optional("org_id", TEXT),
    optional("target_model", TEXT),
    required("input_encrypted", BOOLEAN, "false"),
    required("output_encrypted", BOOLEAN, "false"),
    required("requires_sandbox_mode", TEXT, "none"),
    required("requires_image", TEXT, "ghcr.io/sagewai/sandbox-base:0.0.0-dev"),
    optional("requires_variant", TEXT),
    required("requires_network_policy", TEXT, "none"),
    optional("security_profile_ref", TEXT),
    required("effective_env_keys", STRINGS),
    required("effective_secret_keys", STRINGS),
    optional("revoked_at", INSTANT),
    optional("revoke_reason", TEXT),
    required("execution_mode", TEXT, "bare"),
    optional("artifact_destination", JSON_TEXT),
    optional("replay_of_run_id", TEXT),
    optional("replay_from_step", INTEGER),
    optional("code_hash", TEXT),
    required("directive_chain", JSON_BINARY),
    optional("estimated_cost_usd", FLOAT),
    required("replay_re_evaluate_directives", BOOLEAN, "false"),
    optional("execution_mode_override", TEXT),
    optional("identity_from", TEXT),
    postgres_only(
        CheckConstraint(
            one_of("requires_sandbox_mode", "none", "per_tool", "per_run", "per_worker"),
            name="runs_requires_sandbox_mode_valid",
        )
    ),
    postgres_only(
        CheckConstraint(
            "requires_variant IS NULL OR "
            + one_of("requires_variant", "base", "general", "ml", "ops", "erp", "ecommerce", "api"),
            name="runs_requires_variant_valid",
        )
    ),
    postgres_only(
        CheckConstraint(
            one_of("requires_network_policy", "none", "egress_allowlist", "full"),
            name="runs_requires_network_policy_valid",
        )
    ),
    postgres_only(
        CheckConstraint(
            one_of("execution_mode", "bare", "sandboxed", "identity", "full", "full_jit"),
            name="runs_execution_mode_valid",
        )
    ),
    partial(
        "idx_workflow_runs_idempotency_key",
        "idempotency_key",
        where="idempotency_key IS NOT NULL",
        unique=True,
    ),
    Index("idx_workflow_runs_name_status", "workflow_name", "status"),
    Index("idx_workflow_runs_project_id", "project_id"),
    Index("idx_workflow_runs_replay_of", "replay_of_run_id"),
    Index("idx_workflow_runs_run_id", "run_id"),
    Index("idx_workflow_runs_status", "status"),
    Index("idx_workflow_runs_updated_at", "updated_at"),
    Index("idx_workflow_runs_workflow_name", "workflow_name"),
)

sessions = Table(
    "sessions",
    metadata,
    key("session_id", TEXT),
    Column("project_id", TEXT, primary_key=True, nullable=False, server_default="default"),
    required("agent_name", TEXT),
    required("messages", JSON_BINARY, lax=True),
    optional("summary", TEXT),
    required("memory_keys", JSON_BINARY, lax=True),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    Index("idx_sessions_agent", "agent_name"),
    Index("idx_sessions_project_id", "project_id"),
    Index("idx_sessions_updated", "updated_at"),
)

playground_agents = Table(
    "playground_agents",
    metadata,
    key("name", varchar(255)),
    required("project_id", TEXT, "default"),
    required("spec", TEXT),
    stamp("created_at"),
    stamp("updated_at"),
    Index("ix_playground_agents_project_id", "project_id"),
)

saved_workflows = Table(
    "saved_workflows",
    metadata,
    key("id", TEXT),
    required("project_id", TEXT, "default"),
    required("name", TEXT),
    required("description", TEXT, ""),
    required("yaml_content", TEXT),
    required("version", INTEGER, "1"),
    required("is_active", BOOLEAN, "true"),
    optional("created_by", TEXT),
    stamp("created_at"),
    stamp("updated_at"),
    postgres_only(
        UniqueConstraint("project_id", "name", name="saved_workflows_project_id_name_key")
    ),
    Index("idx_saved_workflows_name", "project_id", "name"),
    Index("idx_saved_workflows_project", "project_id"),
)

saved_workflow_versions = Table(
    "saved_workflow_versions",
    metadata,
    key("id", TEXT),
    required("workflow_id", TEXT),
    required("version", INTEGER),
    required("yaml_content", TEXT),
    stamp("created_at"),
    ForeignKeyConstraint(["workflow_id"], ["saved_workflows.id"], ondelete="CASCADE"),
    postgres_only(
        UniqueConstraint(
            "workflow_id", "version", name="saved_workflow_versions_workflow_id_version_key"
        )
    ),
    Index("idx_saved_workflow_versions_wf", "workflow_id"),
)
