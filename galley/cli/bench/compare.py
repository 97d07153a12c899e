"""Comparison of two servers in alternating rounds: ratios of their figures, with the spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Pair = tuple[Mapping[str, Any], Mapping[str, Any]]

#: result field → (label, whether more is better).
FIELDS = {
    "output_throughput": ("output tok/s", True),
    "total_token_throughput": ("total tok/s", True),
    "request_throughput": ("requests/s", True),
    "request_goodput": ("goodput, requests/s", True),
    "median_ttft_ms": ("median TTFT, ms", False),
    "median_tpot_ms": ("median TPOT, ms", False),
    "median_itl_ms": ("median ITL, ms", False),
    "p99_itl_ms": ("p99 ITL, ms", False),
    "median_e2el_ms": ("median E2EL, ms", False),
}


def ratios(rounds: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """For each field that both servers have in all rounds: each server's median, and the median,
    minimum and maximum over the rounds of the ratio first/second."""
    table = {}
    for field in FIELDS:
        pairs = [(a.get(field), b.get(field)) for a, b in rounds]
        if not all(a and b for a, b in pairs):
            continue
        per_round = [a / b for a, b in pairs if a and b]
        table[field] = {
            "first": statistics.median(a for a, _ in pairs if a),
            "second": statistics.median(b for _, b in pairs if b),
            "ratio": statistics.median(per_round),
            "ratio_min": min(per_round),
            "ratio_max": max(per_round),
        }
    return table


def comparison(rounds: Sequence[Pair], names: tuple[str, str]) -> str:
    """Text table. A ratio of 2 means twice the figure, whether or not higher is better."""
    lines = [f"first:  {names[0]}", f"second: {names[1]}", f"rounds: {len(rounds)}, in turn", ""]
    lines.append(f"{'':<22}{'first':>10}{'second':>10}{'ratio':>8}   over the rounds")
    for field, row in ratios(rounds).items():
        label, more_is_better = FIELDS[field]
        better = (row["ratio"] > 1) == more_is_better
        mark = "first" if better else "second"
        lines.append(
            f"{label:<22}{row['first']:>10.2f}{row['second']:>10.2f}{row['ratio']:>8.2f}"
            f"   {row['ratio_min']:.2f} to {row['ratio_max']:.2f}, {mark} is better"
        )
    failed = [sum(pair[i]["failed"] for pair in rounds) for i in (0, 1)]
    lines.append(f"{'failed requests':<22}{failed[0]:>10}{failed[1]:>10}")
    return "\n".join(lines)
