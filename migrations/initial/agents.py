"""Agents: their runs, prompts, access tokens and evaluations."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    DOUBLE,
    INSTANT,
    INTEGER,
    JSONB,
    STRINGS,
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
    "agent_runs",
    "prompt_logs",
    "agent_access_tokens",
    "eval_datasets",
    "eval_runs",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "agent_runs",
        required("run_id", TEXT),
        required("project_id", TEXT, "default"),
        required("agent_name", TEXT),
        required("status", TEXT, "completed"),
        optional("input_text", TEXT, ""),
        optional("output_text", TEXT, ""),
        optional("total_tokens", INTEGER, "0"),
        optional("input_tokens", INTEGER, "0"),
        optional("output_tokens", INTEGER, "0"),
        optional("cost_usd", DOUBLE, "0"),
        optional("model", TEXT, ""),
        optional("duration_ms", INTEGER, "0"),
        optional("tool_calls", JSONB, "[]"),
        optional("metadata", JSONB, "{}"),
        optional("started_at", DOUBLE, "0"),
        optional("completed_at", DOUBLE, "0"),
        optional("error", TEXT),
        optional("checkpoint_run_id", TEXT),
        stamp("created_at", null=True),
        required("run_type", TEXT, "standalone"),
        optional("parent_workflow_run_id", TEXT),
        key("run_id"),
    )
    index("idx_agent_runs_agent_name", "agent_runs", "agent_name")
    index("idx_agent_runs_model", "agent_runs", "model")
    index("idx_agent_runs_parent_wf", "agent_runs", "parent_workflow_run_id")
    index("idx_agent_runs_project_agent", "agent_runs", "project_id", "agent_name")
    index("idx_agent_runs_project_id", "agent_runs", "project_id")
    index("idx_agent_runs_run_type", "agent_runs", "run_type")
    index("idx_agent_runs_started_at", "agent_runs", "started_at")
    index("idx_agent_runs_status", "agent_runs", "status")
    op.create_table(
        "prompt_logs",
        required("log_id", TEXT),
        required("project_id", TEXT, "default"),
        optional("run_id", TEXT, ""),
        required("agent_name", TEXT),
        optional("step_index", INTEGER, "0"),
        optional("model", TEXT, ""),
        optional("prompt_messages", JSONB, "[]"),
        optional("response_message", JSONB, "{}"),
        optional("input_tokens", INTEGER, "0"),
        optional("output_tokens", INTEGER, "0"),
        optional("cost_usd", DOUBLE, "0"),
        optional("duration_ms", INTEGER, "0"),
        optional("strategy", TEXT, "react"),
        optional("metadata", JSONB, "{}"),
        required("is_example", BOOLEAN, "false"),
        required("tags", TEXT, "[]"),
        required("source", varchar(20), "playground"),
        required("input_text", TEXT, ""),
        required("output_text", TEXT, ""),
        stamp("created_at", null=True),
        key("log_id"),
        reference(["run_id"], "agent_runs", ["run_id"], on_delete="CASCADE"),
    )
    index("idx_prompt_logs_agent_name", "prompt_logs", "agent_name")
    index("idx_prompt_logs_model", "prompt_logs", "model")
    index("idx_prompt_logs_project_id", "prompt_logs", "project_id")
    index("idx_prompt_logs_run_id", "prompt_logs", "run_id")
    index("ix_prompt_logs_is_example", "prompt_logs", "is_example")
    index("ix_prompt_logs_source", "prompt_logs", "source")
    op.create_table(
        "agent_access_tokens",
        required("token_id", TEXT),
        required("project_id", TEXT, "default"),
        required("token_hash", TEXT),
        required("token_suffix", varchar(4), ""),
        required("agent_name", TEXT),
        required("grantor_id", TEXT),
        optional("scopes", STRINGS, "{}"),
        optional("status", TEXT, "active"),
        optional("single_use", BOOLEAN, "false"),
        required("expires_at", INSTANT),
        optional("used_at", INSTANT),
        stamp("created_at", null=True),
        key("token_id"),
        unique("token_hash"),
    )
    index("idx_access_tokens_agent", "agent_access_tokens", "agent_name")
    index("idx_access_tokens_expires", "agent_access_tokens", "expires_at")
    index("idx_access_tokens_hash", "agent_access_tokens", "token_hash", unique=True)
    index("idx_access_tokens_project_id", "agent_access_tokens", "project_id")
    index("idx_access_tokens_status", "agent_access_tokens", "status")
    op.create_table(
        "eval_datasets",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("name", varchar(255)),
        optional("description", TEXT),
        required("cases", TEXT),
        stamp("created_at", null=True),
        unique("project_id", "name"),
    )
    index("ix_eval_datasets_project_id", "eval_datasets", "project_id")
    op.create_table(
        "eval_runs",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("dataset_id", INTEGER),
        required("agent_name", varchar(255)),
        required("model", varchar(255)),
        required("results", TEXT),
        stamp("created_at", null=True),
        reference(["dataset_id"], "eval_datasets", ["id"]),
    )
    index("ix_eval_runs_dataset", "eval_runs", "dataset_id")
    index("ix_eval_runs_project_id", "eval_runs", "project_id")
