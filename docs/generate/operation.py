"""galley/ui/static/operation.json: symptoms and alerts, for the page that has live values."""

from __future__ import annotations

import json
import re

import yaml
from troubleshooting import change

from benchmarks.served import ROOT
from benchmarks.symptoms import SYMPTOMS

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"


def data() -> str:
    return json.dumps({"symptoms": symptoms(), "alerts": alerts()}, indent=1) + "\n"


def symptoms() -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for symptom in SYMPTOMS:
        changed = change(symptom).replace("`", "")
        found.append(
            {
                "title": symptom.title,
                "why": symptom.why.replace("`", ""),
                "others": symptom.others.replace("`", ""),
                "change": changed,
                "flag": changed.split(" ")[0],
                "readings": [
                    {"label": r.label, "query": r.query, "unit": r.unit} for r in symptom.readings
                ],
            }
        )
    return found


def alerts() -> list[dict[str, object]]:
    """`outside`: the condition is about the scrape itself, which the page does not have."""
    found: list[dict[str, object]] = []
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            notes = rule["annotations"]
            found.append(
                {
                    "name": rule["alert"],
                    "expr": " ".join(rule["expr"].split()),
                    "for": rule.get("for", ""),
                    "action": notes.get("action", _plain(notes["summary"])),
                    "outside": rule["expr"].startswith("up"),
                }
            )
    return found


def _plain(text: str) -> str:
    """A summary without its placeholders."""
    text = re.sub(r"\{\{ \$labels\.instance \}\}", "this server", text)
    return re.sub(r"\{\{[^}]*\}\}", "…", text)
