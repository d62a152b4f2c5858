"""The schedules of a machine that run the program's backup."""

from pathlib import Path

from sagewai_ops.schedule.installed import find_schedules


def test_units_and_crontabs_are_found(tmp_path: Path) -> None:
    """Those that run a backup, once each; no comment, no other program."""
    files = {
        "etc/systemd/system/nightly.service": "ExecStart=/opt/sagewai-ops --home /srv backup\n",
        "etc/systemd/system/nightly.timer": "# sagewai-ops backup\n",
        "etc/systemd/system/drill.service": "ExecStart=/opt/sagewai-ops drill\n",
        "etc/cron.d/other": "# sagewai-ops backup\n1 1 * * * root restic backup\n",
        "var/spool/cron/crontabs/ann": "3 3 * * * sagewai-ops backup\n",
        "user/systemd/user/own.service": "ExecStart=sagewai-ops backup\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "usr/lib/systemd").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/system").symlink_to(tmp_path / "etc/systemd/system")

    found = find_schedules({"XDG_CONFIG_HOME": str(tmp_path / "user")}, tmp_path)

    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "etc/systemd/system/nightly.service",
        "user/systemd/user/own.service",
        "var/spool/cron/crontabs/ann",
    ]
