"""Run the revisions on a connection that the caller opened, or spell them as SQL.

`sagewai_ops.schema.migrate_postgres` puts the connection into the configuration's `attributes`,
holds the transaction and the lock around this, and decides alone whether to commit.
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
