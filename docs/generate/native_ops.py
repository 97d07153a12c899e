"""The generated tables of docs/native_ops.md: the ops of models and the ops of csrc/.

The page itself is written by hand; the tables stand between marks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from galley.kernels.ops import all_native_ops, all_ops


def fill(text: str) -> str:
    """The page with its tables made again."""
    for mark, table in (("ops", _ops()), ("native ops", _native_ops())):
        pattern = rf"(<!-- {mark}: made by make docs -->\n).*?(<!-- end of {mark} -->)"
        text, count = re.subn(pattern, lambda m, t=table: m[1] + t + m[2], text, flags=re.S)
        assert count == 1, f"docs/native_ops.md has no marks for {mark}"
    return text


def _ops() -> str:
    lines = ["| `Ops.` | result | native op |", "|---|---|---|"]
    for name, op in sorted(all_ops().items()):
        result = " ".join((type(op).__call__.__doc__ or "").split()).replace("|", "\\|")
        native = f"`{op.native.name}`" if op.native else ""
        lines.append(f"| `{name}` | {result} | {native} |")
    return "\n".join(lines) + "\n"


def _native_ops() -> str:
    lines = ["| op | pointers | ints | floats | columns |", "|---|---|---|---|---|"]
    for name, native in sorted(all_native_ops().items()):
        note = f" ({native.note})" if native.note else ""
        cells = [_arguments(a) for a in (native.pointers, native.ints, native.floats)]
        cells.append(", ".join(f"`{column}`" for column in native.columns))
        lines.append(f"| `{name}`{note} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _arguments(meanings: Mapping[str, str]) -> str:
    shown = []
    for name, meaning in meanings.items():
        optional = "?" if name.endswith("?") else ""
        shown.append(f"`{name.removesuffix('?')}`{optional}" + (f" ({meaning})" if meaning else ""))
    return ", ".join(shown)
