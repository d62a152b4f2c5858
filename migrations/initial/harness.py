"""The harness: policies, keys, spending and audit."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    DOUBLE,
    INSTANT,
    INTEGER,
    JSONB,
    TEXT,
    UUID,
    index,
    key,
    optional,
    reference,
    required,
    stamp,
    unique,
)

TABLES = (
    "harness_policies",
    "harness_keys",
    "harness_spend",
    "harness_audit",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "harness_policies",
        required("id", UUID),
        required("name", TEXT),
        optional("description", TEXT, ""),
        optional("org_id", TEXT),
        optional("team_id", TEXT),
        optional("project_id", TEXT),
        optional("user_id", TEXT),
        required("priority", INTEGER, "0"),
        optional("tier_overrides", JSONB, "{}"),
        optional("blocked_models", JSONB, "[]"),
        optional("allowed_models", JSONB, "[]"),
        optional("max_tier", TEXT),
        optional("force_model", TEXT),
        required("allow_override", BOOLEAN, "true"),
        required("enabled", BOOLEAN, "true"),
        stamp("created_at"),
        stamp("updated_at"),
        key("id"),
    )
    index(
        "ix_harness_policies_scope",
        "harness_policies",
        "org_id",
        "team_id",
        "project_id",
        "user_id",
    )
    op.create_table(
        "harness_keys",
        required("id", UUID),
        required("key_hash", TEXT),
        required("key_suffix", TEXT),
        optional("name", TEXT),
        required("user_id", TEXT),
        required("org_id", TEXT, "default"),
        optional("team_id", TEXT),
        optional("project_id", TEXT),
        optional("allowed_models", JSONB, "[]"),
        optional("max_budget_daily_usd", DOUBLE),
        optional("max_budget_monthly_usd", DOUBLE),
        required("enabled", BOOLEAN, "true"),
        stamp("created_at"),
        optional("expires_at", INSTANT),
        key("id"),
        unique("key_hash"),
    )
    index("ix_harness_keys_org_id", "harness_keys", "org_id")
    index("ix_harness_keys_user_id", "harness_keys", "user_id")
    op.create_table(
        "harness_spend",
        required("id", UUID),
        stamp("timestamp"),
        optional("user_id", TEXT),
        optional("team_id", TEXT),
        optional("project_id", TEXT),
        optional("org_id", TEXT, "default"),
        optional("model_requested", TEXT),
        optional("model_used", TEXT),
        optional("complexity_tier", TEXT),
        optional("input_tokens", INTEGER, "0"),
        optional("output_tokens", INTEGER, "0"),
        optional("cost_usd", DOUBLE, "0"),
        optional("latency_ms", DOUBLE, "0"),
        optional("policy_applied", TEXT),
        optional("budget_action", TEXT),
        optional("key_id", UUID),
        key("id"),
        reference(["key_id"], "harness_keys", ["id"], on_delete="SET NULL"),
    )
    index("ix_harness_spend_model_used", "harness_spend", "model_used")
    index("ix_harness_spend_org_id", "harness_spend", "org_id")
    index("ix_harness_spend_timestamp", "harness_spend", "timestamp")
    index("ix_harness_spend_user_id", "harness_spend", "user_id")
    op.create_table(
        "harness_audit",
        required("id", UUID),
        stamp("timestamp"),
        required("event_type", TEXT),
        optional("user_id", TEXT),
        optional("org_id", TEXT, "default"),
        optional("details", JSONB, "{}"),
        key("id"),
    )
    index("ix_harness_audit_event_type", "harness_audit", "event_type")
    index("ix_harness_audit_timestamp", "harness_audit", "timestamp")
