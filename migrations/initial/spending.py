"""Costs, budgets and guardrails."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    DOUBLE,
    INTEGER,
    TEXT,
    index,
    optional,
    required,
    serial,
    stamp,
    unique,
    varchar,
)

TABLES = (
    "cost_records",
    "budget_limits",
    "budget_spend",
    "guardrail_configs",
    "guardrail_events",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "cost_records",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("agent_name", varchar(255)),
        required("model", varchar(255)),
        required("cost_usd", DOUBLE),
        required("tokens", INTEGER),
        stamp("created_at", null=True),
    )
    index("ix_cost_records_agent", "cost_records", "agent_name")
    index("ix_cost_records_created", "cost_records", "created_at")
    index("ix_cost_records_model", "cost_records", "model")
    index("ix_cost_records_project_id", "cost_records", "project_id")
    op.create_table(
        "budget_limits",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("agent_name", varchar(255)),
        required("max_daily_usd", DOUBLE),
        required("max_monthly_usd", DOUBLE),
        optional("action", varchar(20), "warn"),
        optional("fallback_chain", TEXT),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        unique("project_id", "agent_name"),
    )
    index(
        "ix_budget_limits_project_agent", "budget_limits", "project_id", "agent_name", unique=True
    )
    op.create_table(
        "budget_spend",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("agent_name", varchar(255)),
        required("cost_usd", DOUBLE),
        stamp("created_at", null=True),
    )
    index("ix_budget_spend_agent", "budget_spend", "agent_name")
    index("ix_budget_spend_created", "budget_spend", "created_at")
    index("ix_budget_spend_project_id", "budget_spend", "project_id")
    op.create_table(
        "guardrail_configs",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("agent_name", varchar(255)),
        required("guardrail_type", varchar(50)),
        optional("enabled", BOOLEAN, "true"),
        optional("config", TEXT),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
    )
    index(
        "ix_guardrail_configs_project_agent_type",
        "guardrail_configs",
        "project_id",
        "agent_name",
        "guardrail_type",
        unique=True,
    )
    op.create_table(
        "guardrail_events",
        serial("id", INTEGER),
        required("project_id", TEXT, "default"),
        required("agent_name", varchar(255)),
        required("event_type", varchar(50)),
        optional("entity_type", varchar(50)),
        optional("action", varchar(50)),
        optional("detail", TEXT),
        stamp("created_at", null=True),
    )
    index("ix_guardrail_events_agent", "guardrail_events", "agent_name")
    index("ix_guardrail_events_created", "guardrail_events", "created_at")
    index("ix_guardrail_events_project_id", "guardrail_events", "project_id")
    index("ix_guardrail_events_type", "guardrail_events", "event_type")
