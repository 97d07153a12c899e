"""A recorded program compared with calling each operation (272)."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.claims.claim import Finding, Setup, compare
from galley.planning.steps import Shape, StepBench

_CONTEXT = 64
_REPETITIONS = 30


def measure(setup: Setup) -> Finding:
    shapes = [Shape(1, _CONTEXT, 1), Shape(16, _CONTEXT, 1)]
    program = StepBench({"model": setup.model}, shapes)
    eager = StepBench({"model": setup.model, "enforce_eager": True}, shapes)

    def median_ms(bench: StepBench, shape: Shape) -> Callable[[], float]:
        return lambda: statistics.median(bench.seconds(shape, _REPETITIONS)) * 1e3

    return Finding(
        [
            compare(
                "272",
                f"one native call for a decode step of {shape.rows} row(s)",
                ("program", median_ms(program, shape)),
                ("op by op", median_ms(eager, shape)),
                setup.rounds,
                "ms",
                False,
            )
            for shape in shapes
        ]
    )
