"""`galley bench host`: host time of an engine step with nothing to compute.

A stub executor updates its own table from the plans, as a worker does, and yields one token per
row, so only scheduling, hand-over, commit and outputs are measured. In steady decode, few requests
cross a block border in the median step; the mean includes all border crossings.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from galley.batch import GroupSpec
from galley.cli.bench.flags import BenchParser
from galley.cli.bench.offline import write_json
from galley.cli.bench.tables import print_table
from galley.cli.parser import make
from galley.config import CacheConfig, EngineConfig, SchedulerConfig
from galley.engine.build import build_core
from galley.engine.core import EngineCore
from galley.errors import ConfigError
from galley.planning.simulate import StandIn
from galley.request import Request, SamplingParams

BLOCK_SIZE: Literal[16] = 16
_PROMPT = 64
_WARM_UP = 32


@dataclass(frozen=True)
class HostFlags:
    """Host time"""

    running: str = "1,16,64,256"
    """Numbers of running requests, comma-separated."""
    steps: int = 2000
    """Steps to measure for each number of requests."""
    output_json: str | None = None
    """Write the result to this JSON file."""


def stand_in(max_num_seqs: int, max_model_len: int) -> StandIn:
    """An executor with blocks for so many sequences of this length."""
    groups = [GroupSpec("full", BLOCK_SIZE, 64)]
    return StandIn(
        groups, 1 + max_num_seqs * max_model_len // BLOCK_SIZE, max_num_seqs, max_model_len
    )


def request(handle: int, prompt: np.ndarray, num_output: int) -> Request:
    """A request that decodes for `num_output` steps."""
    return Request(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=prompt.tobytes(),
        params=SamplingParams(max_tokens=num_output, seed=0),
        max_total_tokens=len(prompt) + num_output,
        eos_token_ids=[2],
    )


def make_core(running: int, num_output: int, prompt_len: Callable[[int], int]) -> EngineCore:
    """A core with `running` requests in steady decode; request i has `prompt_len(i)` tokens."""
    longest = max(prompt_len(i) for i in range(running)) + num_output
    max_model_len = -(-longest // BLOCK_SIZE) * BLOCK_SIZE
    config = EngineConfig(
        cache=CacheConfig(block_size=BLOCK_SIZE),
        scheduler=SchedulerConfig(max_num_batched_tokens=16384, max_num_seqs=running),
    )
    core = build_core(config, stand_in(running, max_model_len))
    rng = np.random.default_rng(0)
    for i in range(running):
        prompt = rng.integers(0, 30000, prompt_len(i), dtype=np.int32)
        core.add([request(i + 1, prompt, num_output)])
    while core.scheduler.num_waiting:
        core.step()
    core.step()
    return core


def measure(running: int, steps: int) -> dict[str, float]:
    """Step times in µs, from the step trace (prompt lengths differ to spread block borders)."""
    core = make_core(running, steps + 64, lambda i: _PROMPT + i % BLOCK_SIZE)
    for _ in range(_WARM_UP):
        core.step()
    first = core.trace.last
    gc.collect()
    gc.disable()
    for _ in range(steps):
        core.step()
    gc.enable()
    records = core.trace.since(first)
    whole = (records["end"] - records["begin"]) * 1e6
    return {
        "running": running,
        "calls": count_calls(running),
        "median_us": float(np.median(whole)),
        "mean_us": float(whole.mean()),
        "mean_us_per_request": float(whole.mean()) / running,
        "schedule_us": float((records["submit"] - records["begin"]).mean() * 1e6),
        "execute_us": float((records["sampled"] - records["submit"]).mean() * 1e6),
        "commit_us": float((records["end"] - records["sampled"]).mean() * 1e6),
    }


def count_calls(running: int) -> int:
    """Python and C function calls in one steady decode step without a block border."""
    core = make_core(running, 64, lambda i: _PROMPT + 1)
    calls = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    core.step()
    sys.setprofile(None)
    return calls


def main(argv: list[str]) -> int:
    parser = BenchParser(
        "bench host",
        "Measure the host time of a whole engine step, with the kernels stubbed out.",
        [HostFlags],
        examples=("galley bench host --running 1,256",),
    )
    flags = make(HostFlags, parser.read(argv))
    try:
        counts = [int(part) for part in flags.running.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or flags.steps < 1:
        raise ConfigError("--running takes positive numbers with commas.", field="running")
    rows = [measure(count, flags.steps) for count in counts]
    print_table("Host time of a step, µs", rows)
    write_json(flags.output_json, {"steps": flags.steps, "rows": rows})
    return 0
