"""Run the revisions on the caller's connection, or write them as SQL.

`sagewai_ops.schema.alembic_runner` passes the connection in the configuration's `attributes`. The
caller owns the transaction and the lock, and decides whether to commit.
"""

from alembic import context

connection = context.config.attributes.get("connection")

if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        output_buffer=context.config.output_buffer,
        starting_rev=context.config.attributes["start"],
    )
elif connection is None or connection.dialect.name != "postgresql":
    raise RuntimeError("these revisions run on a PostgreSQL connection given in the attributes")
else:
    context.configure(
        connection=connection,
        on_version_apply=context.config.attributes.get("on_version_apply"),
    )

with context.begin_transaction():
    context.run_migrations()
