"""docs/monitoring/: the rules fire when they should, and ask for metrics that runs write."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from program import call
from small_homes import small

DIRECTORY = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = DIRECTORY / "sagewai-ops.rules.yml"
DASHBOARD = DIRECTORY / "sagewai-ops.dashboard.json"
PANELS = json.loads(DASHBOARD.read_text())["panels"]
needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: make tools")


def _expressions() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    return [*rules, *(target["expr"] for panel in PANELS for target in panel["targets"])]


def test_every_metric_is_one_that_a_run_writes(tmp_path: Path) -> None:
    """A renamed field of a result would leave an alert that never fires."""
    home = small(tmp_path / "home").root
    file = tmp_path / "m.prom"
    for command in ("backup", "drill"):
        assert call("--home", home, command, "--metrics-file", file).code == 0
    written = set(re.findall(r"^(sagewai_ops_\w+)\{", file.read_text(), re.MULTILINE))

    asked = {name for text in _expressions() for name in re.findall(r"sagewai_ops_\w+", text)}

    assert asked <= written
    for part in ("last_success_timestamp", "archive_bytes", "duration", "exit_code"):
        assert any(part in name for name in asked)


def test_rules_and_dashboard_show_the_same() -> None:
    """Age, size, duration and result of backups, and age and result of drills."""
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"]
              for rule in group["rules"]}  # fmt: skip
    titles = {panel["title"] for panel in PANELS}

    assert alerts == {
        *("SagewaiBackupTooOld", "SagewaiBackupMissing", "SagewaiBackupFailed"),
        *("SagewaiBackupShrank", "SagewaiBackupSlow", "SagewaiDrillTooOld", "SagewaiDrillFailed"),
    }
    assert {"Age of the last backup", "Result of the last backup", "Duration"} <= titles
    assert {"Age of the last drill", "Result of the last drill"} <= titles
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


@needs_promtool
def test_rules_are_valid() -> None:
    """By Prometheus's own program, expressions of the dashboard included."""
    checked = subprocess.run(
        ["promtool", "check", "rules", RULES], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    """As rules that record them."""
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$home", ".*")}
        for number, text in enumerate(_expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))

    assert subprocess.run(["promtool", "check", "rules", file], check=False).returncode == 0


def _series(name: str, values: str, command: str = "backup") -> dict[str, str]:
    labels = f'{{command="{command}",home="/srv/sagewai",instance="h"}}'
    return {"series": f"sagewai_ops_{name}{labels}", "values": values}


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "moment", "series"),
    [
        ("SagewaiBackupTooOld", "27h", [_series("last_success_timestamp_seconds", "0x2000")]),
        ("SagewaiBackupMissing", "2h", []),
        ("SagewaiBackupFailed", "1h", [_series("last_run_exit_code", "3x100")]),
        ("SagewaiBackupShrank", "2h", [_series("result_content_bytes", "1000x60 400x200")]),
        ("SagewaiBackupSlow", "1h", [_series("last_run_duration_seconds", "4000x100")]),
        (
            "SagewaiDrillTooOld",
            "9d",
            [_series("last_success_timestamp_seconds", "0x14000", "drill")],
        ),
        ("SagewaiDrillFailed", "1h", [_series("last_run_exit_code", "16x100", "drill")]),
    ],
)
def test_an_alert_fires_when_it_should(
    tmp_path: Path, alert: str, moment: str, series: list[dict[str, str]]
) -> None:
    """In a simulation of Prometheus; and not for a home that is well."""
    well = [
        _series("last_success_timestamp_seconds", "0+60x14000"),
        _series("last_success_timestamp_seconds", "0+60x14000", "drill"),
        _series("last_run_exit_code", "0x14000"),
        _series("last_run_exit_code", "0x14000", "drill"),
        _series("result_content_bytes", "1000x14000"),
        _series("last_run_duration_seconds", "30x14000"),
    ]

    assert _firing(tmp_path, alert, moment, series)
    assert not _firing(tmp_path, alert, moment, well)


def _firing(tmp_path: Path, alert: str, moment: str, series: list[dict[str, str]]) -> bool:
    """Return whether an alert fires: its count is asked of the simulation."""
    name = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
    tests: dict[str, Any] = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": f"count({name})",
                        "eval_time": moment,
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert "parse error" not in done.stdout + done.stderr
    return done.returncode == 0
