"""docs/reliability.md: every promise has a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()


def test_the_tests_that_the_page_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(set(named)) > 30
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert test in functions, f"{file} has no {test}"


def test_every_survival_in_the_table_has_a_test() -> None:
    section = PAGE.partition("## Nothing is lost")[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert all("::test_" in row for row in rows)


def test_the_flags_metrics_and_alerts_exist() -> None:
    program = "\n".join(p.read_text() for p in (ROOT / "galley").rglob("*.py"))
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    section = PAGE.partition("## How to operate it")[2]
    flags = re.findall(r"^\| `--([\w-]+)` \|", section, re.M)
    assert flags
    for flag in flags:
        assert re.search(rf"\b{flag.replace('-', '_')}\b", program), flag
    for metric in re.findall(r"`(galley:\w+)`", section):
        assert metric.removesuffix("_total") in program, metric
    for alert in re.findall(r"`(Galley\w+)`", section):
        assert f"alert: {alert}\n" in alerts, alert
