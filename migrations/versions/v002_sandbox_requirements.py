"""Add the sandbox, image and network that a workflow run requires."""

from alembic import op

from sagewai_ops.migrations.columns import (
    TEXT,
    in_list,
    index,
    optional,
    required,
)

revision = "002_sandbox_requirements"
down_revision = "001_initial"

# From the least to the most; a rank is an index into these lists, from 0.
SANDBOX_MODES = ("none", "per_tool", "per_run", "per_worker")
NETWORK_POLICIES = ("none", "egress_allowlist", "full")
VARIANTS = ("base", "general", "ml", "ops", "erp", "ecommerce", "api")


def _create_rank(name: str, parameter: str, words: tuple[str, ...]) -> str:
    """Return the statement for a function that ranks a word, and returns NULL for any other word.

    The name of the parameter is Sagewai's: CREATE OR REPLACE FUNCTION cannot change it.
    """
    ordered = ", ".join(repr(word) for word in words)
    return (
        f"CREATE FUNCTION {name}({parameter} text) RETURNS integer LANGUAGE sql IMMUTABLE"
        f" AS $$ SELECT array_position(ARRAY[{ordered}]::text[], {parameter}) - 1 $$"
    )


RANKS = {
    "sandbox_mode_rank": _create_rank("sandbox_mode_rank", "m", SANDBOX_MODES),
    "network_policy_rank": _create_rank("network_policy_rank", "p", NETWORK_POLICIES),
}


def upgrade() -> None:
    op.add_column("workflow_runs", required("requires_sandbox_mode", TEXT, "none"))
    op.add_column(
        "workflow_runs", required("requires_image", TEXT, "ghcr.io/sagewai/sandbox-base:0.0.0-dev")
    )
    op.add_column("workflow_runs", optional("requires_variant", TEXT))
    op.add_column("workflow_runs", required("requires_network_policy", TEXT, "none"))
    op.create_check_constraint(
        "runs_requires_network_policy_valid",
        "workflow_runs",
        in_list("requires_network_policy", *NETWORK_POLICIES),
    )
    op.create_check_constraint(
        "runs_requires_sandbox_mode_valid",
        "workflow_runs",
        in_list("requires_sandbox_mode", *SANDBOX_MODES),
    )
    op.create_check_constraint(
        "runs_requires_variant_valid",
        "workflow_runs",
        f"requires_variant IS NULL OR {in_list('requires_variant', *VARIANTS)}",
    )
    index(
        "idx_wf_runs_pending_sandbox",
        "workflow_runs",
        "status",
        "requires_variant",
        "requires_sandbox_mode",
        "requires_network_policy",
        where="status = 'pending'",
    )
    for statement in RANKS.values():
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP FUNCTION network_policy_rank(text)")
    op.execute("DROP FUNCTION sandbox_mode_rank(text)")
    op.drop_index("idx_wf_runs_pending_sandbox", table_name="workflow_runs")
    op.drop_constraint("runs_requires_variant_valid", "workflow_runs", type_="check")
    op.drop_constraint("runs_requires_sandbox_mode_valid", "workflow_runs", type_="check")
    op.drop_constraint("runs_requires_network_policy_valid", "workflow_runs", type_="check")
    op.drop_column("workflow_runs", "requires_network_policy")
    op.drop_column("workflow_runs", "requires_variant")
    op.drop_column("workflow_runs", "requires_image")
    op.drop_column("workflow_runs", "requires_sandbox_mode")
