"""Measures each claim and prints one or more table rows for it.

    python -m benchmarks.claims.run [CLAIM …] [--model MODEL] [--rounds 3] [--scale 1.0]
                                    [--json FILE] [--plots FOLDER]

Sides of a comparison alternate. A ratio above 1 favours Galley; its spread is over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.claims.claim import Curve, Finding, Row, Setup
from benchmarks.claims.drive import Prompts
from galley.cli.bench.plots import plot_curves

#: Modules with `measure(setup)`, in the order of the checklist.
CLAIMS = (
    "batching",
    "mixed_load",
    "regimes",
    "prefix",
    "program",
    "mixture",
    "borrowed_core",
    "concurrency",
    "serving",
    "growth",
)


def table(rows: Sequence[Row]) -> str:
    """Markdown table of the rows."""
    lines = [
        "| item | claim | Galley | against | ratio (over the rounds) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        if row.spread is not None:
            ratio += f" ({row.spread[0]:.2f} to {row.spread[1]:.2f})"
        lines.append(f"| {row.items} | {row.claim} | {row.ours} | {row.other} | {ratio} |")
    return "\n".join(lines)


def draw(name: str, curves: Sequence[Curve], folder: Path) -> None:
    """Plot curves with the same x into one file."""
    for x in dict.fromkeys(curve.x for curve in curves):
        here = [curve for curve in curves if curve.x == x]
        fields = list(dict.fromkeys(curve.y for curve in here))
        lines = {curve.name: curve.points for curve in here}
        plot_curves(lines, x, fields, str(folder / f"{name}_{x}.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("claims", nargs="*", help=", ".join(CLAIMS))
    parser.add_argument("--model", default="", help="default: the built-in model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full load")
    parser.add_argument("--json", type=Path, help="write rows and curves here")
    parser.add_argument("--plots", type=Path, help="plot the curves into this folder")
    args = parser.parse_args()
    unknown = set(args.claims) - set(CLAIMS)
    if unknown:
        parser.error(f"no claim {unknown.pop()!r}; there are {', '.join(CLAIMS)}")
    setup = Setup(args.model, Prompts(args.model), args.rounds, args.scale)
    rows: list[Row] = []
    curves: dict[str, tuple[Curve, ...]] = {}
    for name in args.claims or CLAIMS:
        print(f"{name} …", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            finding: Finding = importlib.import_module(f"benchmarks.claims.{name}").measure(setup)
        print(table(finding.rows), flush=True)
        rows += finding.rows
        curves[name] = finding.curves
        if args.plots and finding.curves:
            args.plots.mkdir(parents=True, exist_ok=True)
            draw(name, finding.curves, args.plots)
    if args.json:
        points = {name: [asdict(curve) for curve in some] for name, some in curves.items()}
        text = json.dumps({"rows": [asdict(row) for row in rows], "curves": points}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
