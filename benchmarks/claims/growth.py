"""Cost growth with running requests, context, prefix hits and queue length (S10)."""

from __future__ import annotations

import statistics
import time

import numpy as np

from benchmarks.claims.claim import Curve, Finding, Row, Setup
from galley.cli.bench.host import BLOCK_SIZE, make_core, request, stand_in
from galley.cli.bench.host import measure as host_time
from galley.config import CacheConfig, EngineConfig, SchedulerConfig
from galley.engine.build import build_core
from galley.planning.steps import Shape, StepBench

_RUNNING = (1, 4, 16, 64, 128, 256)
_CONTEXTS = (128, 512, 2048, 8191)
_QUEUE = 100_000
_SOME = 1000
_HITS = (1_024, 4_096, 16_384)


def measure(setup: Setup) -> Finding:
    parts = [host(setup), context(setup), queue(setup), prefix_hits(setup)]
    return Finding(
        [row for part in parts for row in part.rows],
        tuple(curve for part in parts for curve in part.curves),
    )


def host(setup: Setup) -> Finding:
    """Host time of a decode step, per running request."""
    points = []
    for running in _RUNNING:
        rounds = [host_time(running, 300)["median_us"] for _ in range(setup.rounds)]
        median = statistics.median(rounds)
        points.append({"running": running, "us": median, "us_each": median / running})
    each = {point["running"]: point["us_each"] for point in points}
    row = Row(
        "S10",
        "host time per running request does not grow with their number",
        f"256 running: {each[256]:.3f} µs each",
        f"16 running: {each[16]:.3f} µs each",
        each[16] / each[256],
    )
    return Finding([row], (Curve("host", "running", "us_each", points),))


def context(setup: Setup) -> Finding:
    """A decode step of one row over the length of its context."""
    shapes = [Shape(1, length, 1) for length in _CONTEXTS]
    bench = StepBench({"model": setup.model}, shapes)
    points = [
        {"context": s.context, "ms": statistics.median(bench.seconds(s, 15)) * 1e3} for s in shapes
    ]
    short, long = points[0], points[-1]
    row = Row(
        "S10",
        "the time of a decode step grows with the KV cache it reads",
        f"{long['context']:,} tokens: {long['ms']:.2f} ms",
        f"{short['context']} tokens: {short['ms']:.2f} ms",
        short["ms"] / long["ms"],
    )
    return Finding([row], (Curve("one row", "context", "ms", points),))


def queue(setup: Setup) -> Finding:
    """Time to add a request to an empty queue, and to one of 100,000 requests."""
    count = setup.some(_QUEUE, 4 * _SOME)
    core = make_core(1, 64, lambda i: 16)
    prompt = np.arange(16, dtype=np.int32)

    def admit(first: int) -> float:
        requests = [request(first + i, prompt, 8) for i in range(_SOME)]
        begin = time.perf_counter()
        for waiting in requests:
            core.add([waiting])
        return (time.perf_counter() - begin) / _SOME * 1e6

    points = []
    for first in range(0, count, _SOME):
        points.append({"waiting": first, "us": admit(10 + first)})
    edge = max(1, len(points) // 20)
    start = statistics.median(point["us"] for point in points[:edge])
    last = statistics.median(point["us"] for point in points[-edge:])
    row = Row(
        "S10",
        f"queueing behind {count:,} requests costs the same as queueing first",
        f"last: {last:.1f} µs",
        f"first: {start:.1f} µs",
        start / last,
    )
    return Finding([row], (Curve("queue", "waiting", "us", points),))


def prefix_hits(setup: Setup) -> Finding:
    """Host time of the step that admits a fully cached prompt, over its length."""
    points = []
    for length in _HITS:
        rounds = [admission_ms(length, seed) for seed in range(max(setup.rounds, 3))]
        points.append({"hit_tokens": length, "ms": statistics.median(rounds)})
    short, long = points[0], points[-1]
    row = Row(
        "S10",
        "admitting a cached prompt costs one look-up per block",
        f"{long['hit_tokens']:,} tokens: {long['ms']:.2f} ms",
        f"{short['hit_tokens']:,} tokens: {short['ms']:.2f} ms",
        short["ms"] / long["ms"],
    )
    return Finding([row], (Curve("prefix hit", "hit_tokens", "ms", points),))


def admission_ms(length: int, seed: int) -> float:
    """Milliseconds to admit a prompt, including hashing; the executor is a stub."""
    config = EngineConfig(
        cache=CacheConfig(block_size=BLOCK_SIZE),
        scheduler=SchedulerConfig(max_num_batched_tokens=length + BLOCK_SIZE, max_num_seqs=2),
    )
    core = build_core(config, stand_in(2, length + 4 * BLOCK_SIZE))
    prompt = np.random.default_rng(seed).integers(0, 30000, length, dtype=np.int32)
    for handle in (1, 2):
        begin = time.perf_counter()
        core.add([request(handle, prompt, 2)])
        core.step()
        elapsed = time.perf_counter() - begin
        while core.has_work:
            core.step()
    return elapsed * 1e3
