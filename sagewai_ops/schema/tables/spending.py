"""Costs, budgets, guardrails and rate limits."""

from sqlalchemy import Column, Index, Table, text

from sagewai_ops.schema.tables.columns import (
    BIGINT,
    BOOLEAN,
    DOUBLE,
    INTEGER,
    TEXT,
    key,
    metadata,
    optional,
    required,
    stamp,
    varchar,
)

cost_records = Table(
    "cost_records",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("agent_name", varchar(255)),
    required("model", varchar(255)),
    required("cost_usd", DOUBLE),
    required("tokens", INTEGER),
    stamp("created_at", lax=True),
    Index("ix_cost_records_agent", "agent_name"),
    Index("ix_cost_records_created", "created_at"),
    Index("ix_cost_records_model", "model"),
    Index("ix_cost_records_project_id", "project_id"),
)

budget_limits = Table(
    "budget_limits",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("agent_name", varchar(255)),
    required("max_daily_usd", DOUBLE),
    required("max_monthly_usd", DOUBLE),
    required("action", varchar(20), "warn", lax=True),
    optional("fallback_chain", TEXT),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    Index("ix_budget_limits_project_agent", "project_id", "agent_name", unique=True),
)

budget_spend = Table(
    "budget_spend",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("agent_name", varchar(255)),
    required("cost_usd", DOUBLE),
    stamp("created_at", lax=True),
    Index("ix_budget_spend_agent", "agent_name"),
    Index("ix_budget_spend_created", "created_at"),
    Index("ix_budget_spend_project_id", "project_id"),
)

guardrail_configs = Table(
    "guardrail_configs",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("agent_name", varchar(255)),
    required("guardrail_type", varchar(50)),
    required("enabled", BOOLEAN, "true", lax=True),
    optional("config", TEXT),
    stamp("created_at", lax=True),
    stamp("updated_at", lax=True),
    Index(
        "ix_guardrail_configs_project_agent_type",
        "project_id",
        "agent_name",
        "guardrail_type",
        unique=True,
    ),
)

guardrail_events = Table(
    "guardrail_events",
    metadata,
    key("id", INTEGER),
    required("project_id", TEXT, "default"),
    required("agent_name", varchar(255)),
    required("event_type", varchar(50)),
    optional("entity_type", varchar(50)),
    optional("action", varchar(50)),
    optional("detail", TEXT),
    stamp("created_at", lax=True),
    Index("ix_guardrail_events_agent", "agent_name"),
    Index("ix_guardrail_events_created", "created_at"),
    Index("ix_guardrail_events_project_id", "project_id"),
    Index("ix_guardrail_events_type", "event_type"),
)

rate_limits = Table(
    "rate_limits",
    metadata,
    key("bucket_key", TEXT),
    key("window_start", BIGINT),
    Column("count", INTEGER, nullable=False, server_default=text("0")),  # unquoted, unlike the rest
    Index("ix_rate_limits_window_start", "window_start"),
)
