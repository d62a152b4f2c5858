"""Merge the two revisions numbered 006."""

revision = "007_merge_006_branches"
down_revision = ("006_artifact_destination", "006_replay_snapshots")


def upgrade() -> None:
    """Change nothing: the branches are independent."""


def downgrade() -> None:
    """Change nothing."""
