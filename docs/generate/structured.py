"""The tables of docs/structured-output.md, as measured by tests/structured/coverage.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_MEASURED = Path(__file__).parent / "structured_coverage.json"
_WAYS = ("guidance", "xgrammar", "llguidance alone", "xgrammar alone")


def fill(text: str) -> str:
    """The page with its tables made again."""
    measured = json.loads(_MEASURED.read_text())
    for mark, table in (("corpus", _corpus(measured)), ("keywords", _keywords(measured))):
        pattern = rf"(<!-- {mark}: made by make docs -->\n).*?(<!-- end of {mark} -->)"
        text, count = re.subn(pattern, lambda m, t=table: m[1] + t + m[2], text, flags=re.S)
        assert count == 1, f"docs/structured-output.md has no marks for {mark}"
    return text


def _corpus(measured: dict[str, Any]) -> str:
    lines = [
        "| | hand-written: accepted | some text invalid | real: accepted | some text invalid |",
        "|---|---|---|---|---|",
    ]
    for way in _WAYS:
        cells = []
        for group in ("hand", "real"):
            total, counts = measured[group]["schemas"], measured[group][way]
            share = 100 * counts["accepted"] / total
            cells += [f"{counts['accepted']} of {total} ({share:.0f} %)", str(counts["invalid"])]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _keywords(measured: dict[str, Any]) -> str:
    lines = [f"| keyword | schemas | {' | '.join(_WAYS)} |", "|---|---|---|---|---|---|"]
    for keyword, row in measured["keywords"].items():
        cells = [_cell(row[way]) for way in _WAYS]
        lines.append(f"| `{keyword}` | {row['schemas']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(counts: dict[str, int]) -> str:
    invalid = f", {counts['invalid']} invalid" if counts["invalid"] else ""
    return f"{counts['accepted']}{invalid}"
