"""Prints rows of figures as a text table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one column per key of the first row; numbers are right-aligned, with about 3 digits.

    A terminal gets a table with borders; a file gets lines of aligned columns.
    """
    if not rows:
        return
    names = list(rows[0])
    cells = [[show(row.get(name)) for name in names] for row in rows]
    numeric = [all(_is_number(line[i]) for line in cells) for i in range(len(names))]
    if sys.stdout.isatty():
        _rich(title, names, cells, numeric)
        return
    widths = [max(len(name), *(len(c[i]) for c in cells)) for i, name in enumerate(names)]
    print(title)
    for line in [names, *cells]:
        columns = zip(line, widths, numeric, strict=True)
        padded = (t.rjust(w) if right else t.ljust(w) for t, w, right in columns)
        print("  ".join(padded).rstrip())


def _rich(title: str, names: list[str], cells: list[list[str]], numeric: list[bool]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, right in zip(names, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left")
    for line in cells:
        table.add_row(*line)
    Console().print(table)


def show(value: Any) -> str:
    """Text of a cell: three or more digits of a float, "" for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"
    return str(value)


def _is_number(text: str) -> bool:
    return not text or text.lstrip("-").replace(".", "", 1).replace("e", "", 1).isdigit()
