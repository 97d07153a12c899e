"""Metrics and labels that a PromQL query names; enough of the language for our own queries."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
#: Labels that Prometheus adds to every series.
ADDED = {"job", "instance"}
_GROUPING = re.compile(r"\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?!\s*[\w(])")
_MATCHER = re.compile(r'(\w+)\s*(=~|=|!=|!~)\s*"([^"]*)"')
_WORDS = {"and", "or", "unless", "bool", "inf", "nan"}


@dataclass(frozen=True)
class Query:
    """`selectors`: metric and its (label, operator, value); `grouped`: labels of by and on."""

    text: str
    selectors: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    grouped: frozenset[str]


def parse(text: str) -> Query:
    grouped = {w.strip() for _, inside in _GROUPING.findall(text) for w in inside.split(",")}
    rest = re.sub(r"\[[^\]]*\]", "", _GROUPING.sub("", text))
    selectors = []
    for found in _SELECTOR.finditer(rest):
        name, braces = found.groups()
        before = rest[: found.start()]
        if name.lower() in _WORDS or before.count("{") != before.count("}"):
            continue
        if re.search(r'[\w.]$|"[^"{}]*$', before):
            continue
        selectors.append((name, tuple(_MATCHER.findall(braces or ""))))
    return Query(text, tuple(selectors), frozenset(grouped - {""}))


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard that have queries."""
    board = json.loads((DEPLOY / "grafana" / "galley.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def panel_queries() -> list[tuple[str, str]]:
    """(title and legend, query) of every panel."""
    return [
        (f"{panel['title']}: {target['legendFormat']}", target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def alert_queries() -> list[tuple[str, str]]:
    return [(rule["alert"], rule["expr"]) for rule in alerts()]
