"""Sends a run's requests at their arrival times and collects the outcomes."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from galley.cli.bench.arrivals import Arrivals
from galley.cli.bench.backends import Backend, Options, Outcome, read_reply, request_body
from galley.cli.bench.client import Reply, Target, send
from galley.cli.bench.datasets import Sample

T = TypeVar("T")
ALL_AT_ONCE = Arrivals()


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop if installed: it uses about half the CPU of asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


@dataclass(frozen=True)
class Traffic:
    """How a run's requests are sent."""

    target: Target
    backend: Backend
    options: Options
    arrivals: Arrivals = ALL_AT_ONCE
    max_concurrency: int | None = None
    seed: int = 0
    request_id_prefix: str = ""


@dataclass(frozen=True)
class Run:
    """Outcomes of a run. `began` is `time.perf_counter()`; `duration` is in seconds."""

    outcomes: list[Outcome]
    began: float
    duration: float
    client_cpu: float
    """CPU seconds of this process while the load ran."""


def run_load(
    traffic: Traffic, samples: Sequence[Sample], on_done: Callable[[], None] = lambda: None
) -> Run:
    """Send all samples; `on_done` is called after each answer."""
    return run_async(_run(traffic, samples, on_done))


async def _run(traffic: Traffic, samples: Sequence[Sample], on_done: Callable[[], None]) -> Run:
    prefix = traffic.request_id_prefix
    requests = [
        traffic.target.request(
            request_body(traffic.backend, traffic.options, sample), f"{prefix}{i}" if prefix else ""
        )
        for i, sample in enumerate(samples)
    ]
    times = traffic.arrivals.times(len(samples), np.random.default_rng(traffic.seed))
    limit = traffic.max_concurrency
    gate = asyncio.Semaphore(limit) if limit else None
    loop = asyncio.get_running_loop()
    queued = [0.0] * len(samples)
    gc.collect()
    gc.freeze()
    began, began_loop, cpu = time.perf_counter(), loop.time(), time.process_time()

    async def one(i: int) -> Reply:
        delay = began_loop + times[i] - loop.time()
        if delay > 0:
            await asyncio.sleep(delay)
        if gate is None:
            reply = await send(traffic.target, requests[i])
        else:
            arrived = time.perf_counter()
            async with gate:
                queued[i] = time.perf_counter() - arrived
                reply = await send(traffic.target, requests[i])
        on_done()
        return reply

    replies = await asyncio.gather(*(one(i) for i in range(len(samples))))
    duration = time.perf_counter() - began
    client_cpu = time.process_time() - cpu
    gc.unfreeze()
    outcomes = [read_reply(reply, sample) for reply, sample in zip(replies, samples, strict=True)]
    for outcome, wait in zip(outcomes, queued, strict=True):
        outcome.queue_time = wait
    return Run(outcomes, began, duration, client_cpu)


def progress(total: int, shown: bool) -> Callable[[], None]:
    """A counter on stderr, updated at most twice a second; silent if stderr is not a terminal."""
    if not shown or not sys.stderr.isatty():
        return lambda: None
    done, last = 0, 0.0

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last > 0.5 or done == total:
            last = now
            end = "\n" if done == total else ""
            print(f"\r{done}/{total} requests", end=end, file=sys.stderr, flush=True)

    return advance
