"""The hosted product: instances, subscriptions, invoices, preferences. PostgreSQL only."""

from alembic import op

from sagewai_ops.migrations.columns import (
    BOOLEAN,
    INSTANT,
    INTEGER,
    TEXT,
    index,
    key,
    optional,
    reference,
    required,
    stamp,
    varchar,
)

TABLES = (
    "cloud_instances",
    "cloud_subscriptions",
    "cloud_invoices",
    "cloud_notification_preferences",
)


def create() -> None:
    """Create the tables in an order that their references allow."""
    op.create_table(
        "cloud_instances",
        required("id", TEXT),
        required("user_id", TEXT),
        required("name", varchar(255)),
        required("region", varchar(50), "us-central1"),
        required("status", varchar(50), "provisioning"),
        optional("cloud_run_service_name", varchar(255)),
        optional("url", TEXT),
        optional("plan_id", varchar(50)),
        stamp("created_at"),
        stamp("updated_at"),
        key("id"),
        reference(["user_id"], "users", ["id"], on_delete="CASCADE"),
    )
    index("ix_cloud_instances_user", "cloud_instances", "user_id")
    op.create_table(
        "cloud_subscriptions",
        required("id", TEXT),
        required("user_id", TEXT),
        required("plan_id", varchar(50), "free"),
        optional("stripe_customer_id", varchar(255)),
        optional("stripe_subscription_id", varchar(255)),
        required("status", varchar(50), "active"),
        optional("current_period_end", INSTANT),
        required("cancel_at_period_end", BOOLEAN, "false"),
        stamp("created_at"),
        key("id"),
        reference(["user_id"], "users", ["id"], on_delete="CASCADE"),
    )
    index("ix_cloud_subscriptions_user", "cloud_subscriptions", "user_id")
    op.create_table(
        "cloud_invoices",
        required("id", TEXT),
        required("user_id", TEXT),
        required("amount_cents", INTEGER, "0"),
        required("currency", varchar(10), "usd"),
        optional("status", varchar(50)),
        optional("stripe_invoice_id", varchar(255)),
        optional("period_start", INSTANT),
        optional("period_end", INSTANT),
        optional("pdf_url", TEXT),
        optional("paid_at", INSTANT),
        stamp("created_at"),
        key("id"),
        reference(["user_id"], "users", ["id"], on_delete="CASCADE"),
    )
    index("ix_cloud_invoices_user", "cloud_invoices", "user_id")
    op.create_table(
        "cloud_notification_preferences",
        required("user_id", TEXT),
        required("email_billing", BOOLEAN, "true"),
        required("email_security", BOOLEAN, "true"),
        required("email_product_updates", BOOLEAN, "true"),
        stamp("updated_at"),
        key("user_id"),
        reference(["user_id"], "users", ["id"], on_delete="CASCADE"),
    )
