"""Join the two revisions that were both made as the sixth."""

revision = "007_merge_006_branches"
down_revision = ("006_artifact_destination", "006_replay_snapshots")


def upgrade() -> None:
    """Change nothing: both parents stand."""


def downgrade() -> None:
    """Change nothing."""
