"""Host time of an engine-core step: schedule, commit and outputs, with nothing to compute.

    python benchmarks/host_step.py [--running 1,16,256] [--steps 2000] [--calls]

A stand-in executor keeps its own table by the plans, as a worker does, and yields one token a
row. Printed per number of running requests: median and mean µs of a step, µs per request, and the
shares of scheduling, execution (the stand-in) and commit. The median is a step in which at most
a few requests cross a block border; the mean has all of it.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from galley.batch import GroupSpec, RequestTable, StepPlan, StepResult
from galley.config import CacheConfig, EngineConfig, SchedulerConfig
from galley.engine.core import EngineCore, build
from galley.request import Request, SamplingParams

BLOCK_SIZE = 16


class StandIn:
    """An executor that yields token 7 for every row that samples."""

    batch_invariant = True

    def __init__(self, max_num_seqs: int, max_model_len: int) -> None:
        self.groups = [GroupSpec("full", BLOCK_SIZE, 64)]
        self.max_model_len = max_model_len
        self.num_blocks = 1 + max_num_seqs * max_model_len // BLOCK_SIZE
        self.table = RequestTable(max_num_seqs, max_model_len, self.groups)
        self.tokens = np.full(max_num_seqs, 7, np.int32)
        self.plan: StepPlan | None = None

    def submit(self, plan: StepPlan) -> StandIn:
        self.table.apply_plan(plan)
        self.plan = plan
        return self

    def sample(self, mask: Any = None) -> StepResult:
        plan = self.plan
        assert plan is not None
        counts = plan.samples.astype(np.int32)
        result = StepResult(plan.step, counts, self.tokens[: np.count_nonzero(counts)])
        self.table.apply_result(plan, result)
        return result

    def rpc(self, method: str, *args: Any) -> list[Any]:
        return []

    def shutdown(self) -> None:
        pass


def make_core(running: int, num_output: int, prompt_len: Callable[[int], int]) -> EngineCore:
    """A core with `running` requests in steady decode; request i has `prompt_len(i)` tokens."""
    max_model_len = 256 + num_output
    config = EngineConfig(
        cache=CacheConfig(block_size=BLOCK_SIZE),
        scheduler=SchedulerConfig(max_num_batched_tokens=16384, max_num_seqs=max(running, 1)),
    )
    core = build(config, StandIn(max(running, 1), max_model_len))
    rng = np.random.default_rng(0)
    for i in range(running):
        prompt = rng.integers(0, 30000, prompt_len(i), dtype=np.int32)
        core.add([_request(i + 1, prompt, num_output)])
    while core.scheduler.num_waiting:
        core.step()
    core.step()
    return core


def _request(handle: int, prompt: np.ndarray, num_output: int) -> Request:
    return Request(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=prompt.tobytes(),
        sampling=SamplingParams(max_tokens=num_output, seed=0),
        max_total_tokens=len(prompt) + num_output,
        eos_token_ids=[2],
    )


def measure(running: int, steps: int) -> dict[str, float]:
    """µs of a step, from the step trace (prompt lengths differ, so borders are spread out)."""
    core = make_core(running, steps + 64, lambda i: 64 + i % BLOCK_SIZE)
    for _ in range(32):
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
        "median": float(np.median(whole)),
        "mean": float(whole.mean()),
        "schedule": float((records["submit"] - records["begin"]).mean() * 1e6),
        "execute": float((records["sampled"] - records["submit"]).mean() * 1e6),
        "commit": float((records["end"] - records["sampled"]).mean() * 1e6),
    }


def count_calls(running: int) -> int:
    """Python and C function calls in one steady decode step without a block border."""
    core = make_core(running, 64, lambda i: 65)
    calls = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    core.step()
    sys.setprofile(None)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--running", default="1,16,64,256")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    print("running  calls  median µs  mean µs  µs/request  schedule  execute  commit")
    for n in map(int, args.running.split(",")):
        m = measure(n, args.steps)
        print(
            f"{n:7}  {count_calls(n):5}  {m['median']:9.1f}  {m['mean']:7.1f}  "
            f"{m['mean'] / n:10.2f}  {m['schedule']:8.1f}  {m['execute']:7.1f}  {m['commit']:6.1f}"
        )


if __name__ == "__main__":
    main()
