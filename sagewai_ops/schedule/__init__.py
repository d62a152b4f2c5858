"""Schedules for nightly backups: systemd, cron, Compose, Kubernetes."""
