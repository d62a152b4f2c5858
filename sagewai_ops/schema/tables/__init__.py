"""The 55 tables of a home, as SQLAlchemy Core metadata, one module per family.

`metadata` builds on SQLite what a fresh Sagewai 1.0.1 home has: columns in the same order, types,
defaults, keys, checks and indexes. What the columns are on PostgreSQL is in their types. The
tables that only PostgreSQL has are in the migrations alone: Sagewai has no model of them either.
"""

from sagewai_ops.schema.tables import (
    agents,
    audit,
    connectors,
    context,
    directives,
    fleet,
    harness,
    identity,
    notifications,
    resources,
    sealed,
    spending,
    workflows,
    workspaces,
)
from sagewai_ops.schema.tables.columns import LAX, metadata

__all__ = [
    "LAX",
    "agents",
    "audit",
    "connectors",
    "context",
    "directives",
    "fleet",
    "harness",
    "identity",
    "metadata",
    "notifications",
    "resources",
    "sealed",
    "spending",
    "workflows",
    "workspaces",
]
