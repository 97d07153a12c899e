"""docs/troubleshooting.md: from symptom to fix, with the numbers of symptoms.json."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.symptoms import SYMPTOMS, Reading, Symptom

HEAD = """# Troubleshooting

From a symptom to the metric that shows it and the flag that fixes it. Every column of the tables
has been tried: `make symptoms` reproduces the problem, applies each fix, and fails if the metric
does not move. The numbers are from its last run with the built-in model ({machine}); yours will
differ, but they move in the same direction.

The panels are those of `deploy/grafana/galley.json`, the alerts those of
`deploy/prometheus/alerts.yml`.

"""


def page() -> str:
    """The whole page, in Markdown."""
    results = json.loads((Path(__file__).parent / "symptoms.json").read_text())
    parts = [HEAD.format(machine=results["machine"]), tree()]
    parts += [section(symptom, results[symptom.name]) for symptom in SYMPTOMS]
    return "".join(parts)


def tree() -> str:
    lines = ["| symptom | metric | fix |", "|---|---|---|"]
    for s in SYMPTOMS:
        link = f"[{s.title}](#{anchor(s.title)})"
        metrics = ", ".join(dict.fromkeys(f"`{first_metric(r)}`" for r in s.readings))
        lines.append(f"| {link} | {metrics} | {change(s)} |")
    return "\n".join(lines) + "\n"


def section(symptom: Symptom, numbers: dict[str, list[float]]) -> str:
    lines = [f"\n## {symptom.title}\n", symptom.why, ""]
    settings = (symptom.trouble, *symptom.remedies)
    heads = " | ".join(f"`{' '.join(flags)}`" for flags in settings)
    lines += [f"| | {heads} | as a query |", "|---" * (len(settings) + 2) + "|"]
    for reading in symptom.readings:
        cells = " | ".join(shown(value, reading.unit) for value in numbers[reading.label])
        lines.append(f"| {reading.label} | {cells} | `{reading.query}` |")
    return "\n".join([*lines, *(["", symptom.others] if symptom.others else []), ""])


def shown(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}".strip()


def first_metric(reading: Reading) -> str:
    words = reading.query.replace("(", " ").replace("[", " ").split()
    name = next(word for word in words if word.startswith(("vllm:", "galley:")))
    return name.removesuffix("_sum").removesuffix("_bucket")


def anchor(title: str) -> str:
    return title.lower().replace(",", "").replace(" ", "-")


def change(symptom: Symptom) -> str:
    """The flag whose value the first remedy changes, with both values."""
    before, after = symptom.trouble, symptom.remedies[0]
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            return f"`{new}`" if old.startswith("--") else f"`{before[i - 1]}` ({old} → {new})"
    raise AssertionError(f"{symptom.name} changes nothing")
