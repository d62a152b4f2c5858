"""Findings about permissions as SARIF 2.1.0, for tools that collect findings.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sagewai_ops.permissions.findings import Finding, Inspection
from sagewai_ops.permissions.rules import RULES, Rule

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
VERSION = "2.1.0"


def as_sarif(inspection: Inspection, tool_version: str) -> dict[str, Any]:
    """Return the SARIF log of an inspection, with every rule and a result for each finding."""
    numbers = {rule.id: number for number, rule in enumerate(RULES)}
    return {
        "$schema": SCHEMA,
        "version": VERSION,
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "sagewai-ops",
                        "semanticVersion": tool_version,
                        "rules": [_rule(rule) for rule in RULES],
                    }
                },
                "originalUriBaseIds": {"HOME": {"uri": _uri(inspection.home) + "/"}},
                "columnKind": "unicodeCodePoints",
                "results": [
                    _result(finding, numbers[finding.rule.id], inspection.home)
                    for finding in inspection.findings
                ],
            }
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    name = "".join(word.strip("/'").capitalize() for word in rule.name.replace("-", " ").split())
    return {
        "id": rule.id,
        "name": "".join(character for character in name if character.isalnum()),
        "shortDescription": {"text": rule.name},
        "fullDescription": {"text": rule.protects},
        "defaultConfiguration": {"level": rule.severity.value},
        "help": {"text": rule.advice or "sagewai-ops verify-perms --fix"},
    }


def _result(finding: Finding, number: int, home: Path) -> dict[str, Any]:
    location: dict[str, str] = {"uri": _uri(finding.path)}
    if finding.path != home and finding.path.is_relative_to(home):
        relative = os.fsencode(finding.path.relative_to(home))
        location = {"uri": quote(relative), "uriBaseId": "HOME"}
    return {
        "ruleId": finding.rule.id,
        "ruleIndex": number,
        "level": finding.rule.severity.value,
        "message": {"text": f"{finding.message}: {finding.rule.protects}"},
        "locations": [{"physicalLocation": {"artifactLocation": location}}],
    }


def _uri(path: Path) -> str:
    return "file://" + quote(os.fsencode(path))
