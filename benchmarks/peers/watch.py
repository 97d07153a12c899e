"""Measures the native calls of this process, and their minimum time at the machine's limits.

The floor of a step is the sum of its operations' rooflines (`galley.planning.work`): weights and
KV cache read at the speed of a plain loop, or multiply-adds at the peak of a loop in registers, as
the machine gave them in the same minute. Only what stays in a cache from step to step beats it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from galley.batch import StepPlan
from galley.kernels.cpu import CpuExecutable
from galley.kernels.program import Node
from galley.kv.format import KVFormat
from galley.planning.limits import MachineLimits
from galley.planning.step import StepLoad
from galley.planning.work import Cache, work_of
from galley.runner.runner import Runner

_BLOCK = 16


@dataclass
class StopWatch:
    """Accumulates the seconds and the work of native steps."""

    seconds: float = 0.0
    loads: list[StepLoad] = field(default_factory=list)
    _executable: CpuExecutable | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time every `CpuExecutable.run` of this process."""
        run, execute = CpuExecutable.run, Runner.execute

        @functools.wraps(run)
        def timed(executable: CpuExecutable, *args: Any, **kwargs: Any) -> None:
            self._executable = executable
            begin = time.perf_counter()
            run(executable, *args, **kwargs)
            self.seconds += time.perf_counter() - begin

        @functools.wraps(execute)
        def noted(runner: Runner, plan: StepPlan) -> None:
            execute(runner, plan)
            before = runner.table.num_computed[plan.slots]
            self.loads.append(StepLoad.of(before, plan.num_new, int(plan.num_logits.sum())))

        with (
            mock.patch.object(CpuExecutable, "run", timed),
            mock.patch.object(Runner, "execute", noted),
        ):
            yield

    def floor(self, limits: MachineLimits) -> float:
        """Minimum seconds of the recorded steps at the machine's limits (one or more steps)."""
        assert self._executable is not None
        nodes = self._executable.nodes
        layers = {node.layer for node in nodes if node.op == "attention"}
        token_bytes = self._executable.kv_layout(_BLOCK).bytes_per_token / max(len(layers), 1)
        cache = Cache(token_bytes, KVFormat("bfloat16" if limits.peak["bf16"] else "float32"))
        return sum(seconds_of(nodes, load, cache, limits) for load in self.loads)


def seconds_of(nodes: list[Node], load: StepLoad, cache: Cache, limits: MachineLimits) -> float:
    """The rooflines of all operations of a step."""
    return sum(work_of(node, load, cache).roofline(limits) for node in nodes)
