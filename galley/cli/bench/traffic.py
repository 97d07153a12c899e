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
    """Outcomes of a run. `began` is `time.perf_counter()`; `duration` is in seconds;
    `interrupted`: Ctrl-C ended it, and only requests that had an answer are there."""

    outcomes: list[Outcome]
    began: float
    duration: float
    client_cpu: float
    """CPU seconds of this process while the load ran."""
    interrupted: bool = False


def run_load(traffic: Traffic, samples: Sequence[Sample], shown: bool = False) -> Run:
    """Send all samples; `shown`: with a progress display. Ctrl-C ends the run early; it raises
    KeyboardInterrupt only if there is no answer yet."""
    return run_async(_run(traffic, samples, shown))


async def _run(traffic: Traffic, samples: Sequence[Sample], shown: bool) -> Run:
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
    frozen = gc.get_freeze_count() > 0  # by an earlier owner of this process
    gc.collect()
    gc.freeze()
    began, began_loop, cpu = time.perf_counter(), loop.time(), time.process_time()

    replies: list[Reply | None] = [None] * len(samples)
    advance = progress(len(samples), shown)

    async def one(i: int) -> None:
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
        replies[i] = reply
        advance()

    interrupted = False
    try:
        await asyncio.gather(*(one(i) for i in range(len(samples))))
    except asyncio.CancelledError:
        interrupted = any(reply is not None for reply in replies)
        if not interrupted:
            print("\ngalley: interrupted: no request had an answer", file=sys.stderr)
            raise
    duration = time.perf_counter() - began
    client_cpu = time.process_time() - cpu
    if not frozen:
        gc.unfreeze()
    outcomes = []
    for reply, sample, wait in zip(replies, samples, queued, strict=True):
        if reply is not None:
            outcomes.append(read_reply(reply, sample))
            outcomes[-1].queue_time = wait
    return Run(outcomes, began, duration, client_cpu, interrupted)


def progress(total: int, shown: bool) -> Callable[[], None]:
    """A counter on stderr from the start on, updated at most twice a second, with the time that
    is left at the pace so far; silent if stderr is not a terminal."""
    if not shown or not sys.stderr.isatty():
        return lambda: None
    done, began, last = 0, time.monotonic(), 0.0
    print(f"0/{total} requests", end="", file=sys.stderr, flush=True)

    def advance() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last > 0.5 or done == total:
            last = now
            left = (now - began) / done * (total - done)
            rate = done / max(now - began, 1e-9)
            text = f"{done}/{total} requests, {rate:.1f}/s, {left:.0f} s left"
            print(f"\r{text:<60}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return advance
