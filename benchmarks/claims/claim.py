"""Results of a claim's measurement: table rows, and curves to plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.claims.drive import Prompts


@dataclass(frozen=True)
class Setup:
    """Settings of all measurements.

    Attributes:
        model: engine flag; "" is the built-in model.
        rounds: repetitions of a comparison; its sides alternate.
        scale: fraction of the full load, for quick runs.
    """

    model: str
    prompts: Prompts
    rounds: int
    scale: float = 1.0

    def some(self, count: int, least: int = 1) -> int:
        """Scaled number of requests."""
        return max(least, round(count * self.scale))


@dataclass(frozen=True)
class Row:
    """One measured line. `ratio` compares `ours` with `other` so that above 1 is better."""

    items: str
    claim: str
    ours: str
    other: str
    ratio: float | None = None
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """Points of a plot: each a dict of the fields `x` and `y`."""

    name: str
    x: str
    y: str
    points: list[dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    rows: list[Row]
    curves: tuple[Curve, ...] = ()


def compare(
    items: str,
    claim: str,
    ours: tuple[str, Callable[[], float]],
    other: tuple[str, Callable[[], float]],
    rounds: int,
    unit: str,
    more_is_better: bool,
) -> Row:
    """Run both sides alternately; report medians, and the ratio per round."""
    pairs = [(ours[1](), other[1]()) for _ in range(rounds)]
    each = [a / b if more_is_better else b / a for a, b in pairs]
    mine = statistics.median(a for a, _ in pairs)
    theirs = statistics.median(b for _, b in pairs)
    return Row(
        items,
        claim,
        f"{ours[0]}: {mine:.4g} {unit}",
        f"{other[0]}: {theirs:.4g} {unit}",
        statistics.median(each),
        (min(each), max(each)),
    )
