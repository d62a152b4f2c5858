"""The context engine: documents and their chunks."""

from alembic import op

from sagewai_ops.migrations.columns import (
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
    stamp,
)

TABLES = (
    "context_documents",
    "context_chunks",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "context_documents",
        required("id", TEXT),
        required("scope", TEXT),
        required("scope_id", TEXT),
        required("project_id", TEXT, "default"),
        required("title", TEXT),
        required("source", TEXT, "upload"),
        optional("source_uri", TEXT),
        required("mime_type", TEXT, "text/plain"),
        optional("file_size_bytes", INTEGER, "0"),
        optional("chunk_count", INTEGER, "0"),
        required("status", TEXT, "pending"),
        optional("confidence", DOUBLE, "1"),
        stamp("freshness_at", null=True),
        optional("metadata", JSONB, "{}"),
        stamp("created_at", null=True),
        stamp("updated_at", null=True),
        required("tags", STRINGS, "{}"),
        key("id"),
    )
    index("idx_ctx_docs_project", "context_documents", "project_id")
    index("idx_ctx_docs_scope", "context_documents", "scope", "scope_id")
    index("idx_ctx_docs_source", "context_documents", "source")
    index("idx_ctx_docs_status", "context_documents", "status")
    index("idx_ctx_docs_tags", "context_documents", "tags", using="gin")
    op.create_table(
        "context_chunks",
        required("id", TEXT),
        required("document_id", TEXT),
        required("scope", TEXT),
        required("scope_id", TEXT),
        required("project_id", TEXT, "default"),
        required("content", TEXT),
        optional("chunk_index", INTEGER, "0"),
        optional("token_count", INTEGER, "0"),
        optional("embedding_model", TEXT, "text-embedding-3-small"),
        required("content_hash", TEXT),
        optional("importance", DOUBLE, "0.5"),
        optional("access_count", INTEGER, "0"),
        optional("last_accessed_at", INSTANT),
        optional("metadata", JSONB, "{}"),
        stamp("created_at", null=True),
        key("id"),
        reference(["document_id"], "context_documents", ["id"], on_delete="CASCADE"),
    )
    index("idx_ctx_chunks_accessed", "context_chunks", "last_accessed_at")
    index("idx_ctx_chunks_doc", "context_chunks", "document_id")
    index("idx_ctx_chunks_hash", "context_chunks", "content_hash")
    index("idx_ctx_chunks_importance", "context_chunks", "importance")
    index("idx_ctx_chunks_project", "context_chunks", "project_id")
    index("idx_ctx_chunks_scope", "context_chunks", "scope", "scope_id")
