"""Prefill is bound by arithmetic, decode by memory (270)."""

from __future__ import annotations

import statistics

from benchmarks.claims.claim import Curve, Finding, Row, Setup
from galley.planning.limits import measure_limits
from galley.planning.steps import Shape, StepBench
from galley.planning.work import work_of

_CONTEXT = 192
_DECODES = (1, 2, 4, 8, 16, 32, 64)
_PREFILLS = (16, 64, 256, 1024)
_REPETITIONS = 9


def measure(setup: Setup) -> Finding:
    """Compare each step's multiply-adds and memory bytes with the machine's limits."""
    decodes = [Shape(rows, _CONTEXT, 1) for rows in _DECODES]
    prefills = [Shape(1, 0, tokens) for tokens in _PREFILLS]
    bench = StepBench({"model": setup.model}, decodes + prefills)
    limits = measure_limits(bench.threads)
    peak = limits.peak["int8" if bench.model_info.dtype.startswith(("Q", "int")) else "bf16"]
    points = []
    for shape in decodes + prefills:
        seconds = statistics.median(bench.seconds(shape, _REPETITIONS))
        operations = sum(
            work_of(node, shape, bench.cache).operations for node in bench.executable.nodes
        )
        kv = shape.cached * bench.kv_bytes_per_token
        points.append(
            {
                "tokens": shape.tokens,
                "decode": shape.new == 1,
                "tokens_per_s": shape.tokens / seconds,
                "memory": (bench.weight_bytes + kv) / seconds / limits.read,
                "arithmetic": operations / seconds / (peak or limits.peak["f32"]),
            }
        )
    one, full = points[0], points[-1]
    row = Row(
        "270",
        "decode is bound by memory, prefill by arithmetic",
        f"prefill of {full['tokens']}: {full['arithmetic']:.0%} of peak arithmetic, "
        f"{full['memory']:.0%} of memory read",
        f"decode of 1: {one['memory']:.0%} of memory read, "
        f"{one['arithmetic']:.0%} of peak arithmetic",
    )
    curves = tuple(
        Curve(name, "tokens", field, [p for p in points if p["decode"] == decode])
        for name, decode in (("decode", True), ("prefill", False))
        for field in ("memory", "arithmetic", "tokens_per_s")
    )
    return Finding([row], curves)
