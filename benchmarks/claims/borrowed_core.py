"""A step at one stream while another program keeps one of the cores busy (S2)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.claims.claim import Finding, Row, Setup
from galley.planning.steps import Shape, StepBench

_SHAPE = Shape(1, 192, 1)
_STEPS = 500
#: Limit of the p90 of a step, in medians.
_LIMIT = 2.5


def measure(setup: Setup) -> Finding:
    """Alternate steps with all cores free and with each core borrowed; report the worst core."""
    bench = StepBench({"model": setup.model}, [_SHAPE])
    cores: list[int | None] = [None, *sorted(os.sched_getaffinity(0))]
    seconds: dict[int | None, list[float]] = {core: [] for core in cores}
    for _ in range(setup.rounds):
        for core in cores:
            with _borrowed(core):
                seconds[core] += bench.seconds(_SHAPE, setup.some(_STEPS, 50))
    spread = {core: np.quantile(times, [0.5, 0.9]) * 1e3 for core, times in seconds.items()}
    worst = max(cores[1:], key=lambda core: spread[core][1] / spread[core][0])
    median, late = spread[worst]
    row = Row(
        "S2",
        f"a step at one stream on a borrowed core: its p90 stays under {_LIMIT} × its median",
        f"core {worst} borrowed: median {median:.2f} ms, p90 {late:.2f} ms",
        f"free: median {spread[None][0]:.2f} ms, p90 {spread[None][1]:.2f} ms",
        _LIMIT * median / late,
    )
    return Finding([row])


@contextmanager
def _borrowed(core: int | None) -> Iterator[None]:
    """Run a busy loop in a process on this core; None: no process."""
    if core is None:
        yield
        return
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            yield
        finally:
            process.kill()
