"""Advice from a prediction: flags and why, the load that meets a goal, its cost."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from galley.planning.machine import THIS, Machine
from galley.planning.predict import DoesNotFit, MemoryPlan, Prediction, predict
from galley.planning.program import PlannedModel
from galley.planning.simulate import Workload

#: Most requests at once that a goal is looked for with.
_MOST = 256


class Goal(NamedTuple):
    """Milliseconds that the 99th percentile of TTFT, and the mean of ITL, may take; 0 = any."""

    ttft: float = 0.0
    itl: float = 0.0

    def met(self, found: Prediction) -> bool:
        ttft, itl = found.ttft["p99"] * 1e3, found.itl["mean"] * 1e3
        return not (0 < self.ttft < ttft) and not (0 < self.itl < itl)


class Flag(NamedTuple):
    """A flag of `galley serve`, and the reason for it."""

    text: str
    reason: str


def largest_load(
    model: PlannedModel,
    machine: Machine,
    workload: Workload,
    goal: Goal,
    engine: dict[str, Any],
) -> Prediction | None:
    """The prediction for the most requests at once that meet the goal, of 1, 2, 4 … 256; None if
    not even one does."""
    best, count = None, 1
    while count <= _MOST:
        wanted = {"max_num_seqs": count, **engine}
        if goal.itl:
            wanted = {"target_itl": goal.itl, **wanted}
        tried = msgspec.structs.replace(workload, concurrency=count, rate=0.0)
        try:
            found = predict(model, machine, tried, wanted)
        except DoesNotFit:
            break
        if not goal.met(found) or count > found.memory.sequences * found.engines:
            break
        if best is not None and found.output_tokens < 1.02 * best.output_tokens:
            break
        best, count = found, 2 * count
    return best


def replicas(rate: float, found: Prediction) -> int:
    """Machines for so many requests per second, if each serves what was found."""
    return max(1, math.ceil(rate / found.requests))


def cost_per_million(price_per_hour: float, tokens_per_second: float) -> float:
    """Of a machine paid by the hour: price / (tokens per second * 3600) * 1,000,000."""
    return price_per_hour / (tokens_per_second * 3600) * 1e6


def pool_mib(memory: MemoryPlan) -> int:
    """MiB of a pool of blocks for the workload."""
    return -(-memory.pool // 2**20)


def flags(found: Prediction, machine: Machine, goal: Goal) -> list[Flag]:
    """Flags of `galley serve` for a prediction."""
    load, memory = found.workload, found.memory
    each = -(-load.concurrency // found.engines)
    chosen = [
        Flag(
            f"--max-model-len {found.max_model_len}",
            "no request is longer, and none may take more of the KV cache",
        ),
        Flag(
            f"--max-num-seqs {max(each, 1)}",
            "as many requests run at once; others wait without slowing them",
        ),
    ]
    if machine.name == THIS:
        chosen.append(
            Flag(
                f"--kv-cache-memory-bytes {pool_mib(memory)}M",
                "the KV cache of these requests; the rest of the memory stays free",
            )
        )
    if goal.itl and load.prompt > 64:
        chosen.append(
            Flag(
                f"--target-itl {goal.itl:g}",
                "a step with a prompt takes no longer while others decode",
            )
        )
    if found.ranks > 1:
        chosen.append(
            Flag(
                f"--tensor-parallel-size {found.ranks}",
                "the fewest devices that hold the model: each more costs exchanges in every layer "
                "(computed: this version runs on one rank)",
            )
        )
    return chosen
