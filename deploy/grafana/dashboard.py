"""panels.yaml in Grafana's form: `python deploy/grafana/dashboard.py > galley.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

#: Selects the series of the dashboard's variables; a process and HTTP have no model and engine.
PROCESS = 'job=~"$job", instance=~"$instance"'
MODEL = PROCESS + ', model_name=~"$model_name", engine=~"$engine"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRID, HEIGHT = 24, 8
VARIABLES = ("job", "instance", "model_name", "engine")


def expand(query: str) -> str:
    """The query with M, P and R written out."""
    query = re.sub(r"\{M\b", "{" + MODEL, query)
    query = re.sub(r"\{P\b", "{" + PROCESS, query)
    return query.replace("[R]", "[$__rate_interval]")


def queries_of(panel: dict[str, Any]) -> dict[str, str]:
    """Legend → query, Grafana's variables still in it."""
    if "queries" in panel:
        return {legend: expand(query) for legend, query in panel["queries"].items()}
    name, scope = panel["histogram"], panel.get("scope", "M")
    parts = {
        f"p{q}": f"histogram_quantile({q / 100}, sum by (le) (rate({name}_bucket{{{scope}}}[R])))"
        for q in (50, 95, 99)
    }
    total, count = (f"sum(rate({name}_{part}{{{scope}}}[R]))" for part in ("sum", "count"))
    parts["mean"] = f"{total} / clamp_min({count}, 1e-9)"
    return {legend: expand(query) for legend, query in parts.items()}


def build(panel: dict[str, Any], number: int, x: int, y: int, w: int) -> dict[str, Any]:
    """One panel at (x, y)."""
    kind = panel.get("kind", "timeseries")
    instant = kind != "timeseries"
    limits = {"min": 0, **({"max": panel["max"]} if "max" in panel else {})}
    targets = [
        {
            "refId": "ABCDEFGH"[i],
            "datasource": SOURCE,
            "expr": query,
            "legendFormat": legend,
            "instant": instant,
            "range": not instant,
            **({"format": "table"} if kind == "table" else {}),
        }
        for i, (legend, query) in enumerate(queries_of(panel).items())
    ]
    return {
        "id": number,
        "type": kind,
        "title": panel["title"],
        "description": panel.get("help", ""),
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": w, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel["unit"], **limits}, "overrides": []},
        "targets": targets,
    }


def variable(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values(vllm:num_requests_running, {name})", "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole dashboard: a row's panels share its width, the first row's in one line."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": GRID, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row["row"], "gridPos": place})
        across = 3 if len(panels) > 1 else len(row["panels"])
        w = GRID // across
        for i, panel in enumerate(row["panels"]):
            x, line = i % across, i // across
            panels.append(build(panel, len(panels) + 1, x * w, y + 1 + line * HEIGHT, w))
        y += 1 + -(-len(row["panels"]) // across) * HEIGHT
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "uid": "galley",
        "title": "Galley",
        "tags": ["galley", "vllm"],
        "schemaVersion": 39,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *map(variable, VARIABLES)]},
        "panels": panels,
    }


if __name__ == "__main__":
    text = Path(__file__).with_name("panels.yaml").read_text(encoding="utf-8")
    print(json.dumps(dashboard(yaml.safe_load(text)), indent=1))
