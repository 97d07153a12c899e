"""Times of the operations of a running engine's steps, beside the least that they could take."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from galley.config import EngineConfig
from galley.config.cores import usable_cores
from galley.errors import ModelError, Overloaded
from galley.kernels.ops import KVLayer
from galley.kernels.program import Node
from galley.loader import open_checkpoint, resolve_source
from galley.models.footprint import kv_layers, program
from galley.planning.limits import MachineLimits, measure_limits
from galley.planning.step import StepLoad
from galley.planning.work import Cache, Work, work_of
from galley.runner.device import dense_format
from galley.runner.kv_format import kv_format
from galley.server.context import Context

#: Steps that are timed, and the seconds within which they have to come.
STEPS = 32
SECONDS = 2.0
#: Seconds after which the engine is asked again whether it has timed them.
INTERVAL = 0.05


class Operation(msgspec.Struct):
    """All operations of one kind, in the mean step.

    Attributes:
        seconds: measured.
        bytes, operations: computed from shapes: what must be read from memory, and multiply-adds
            times two. 0 where all data stay in the caches.
        least: seconds at the machine's limits; None where they are not known, or have no meaning.
    """

    label: str
    count: int
    seconds: float
    bytes: float
    operations: float
    least: float | None


class Report(msgspec.Struct):
    """Attributes:
    steps, rows, tokens: how many steps, and of the mean step its rows and tokens.
    lines, seconds: of the program, one entry an operation; seconds of the mean step.
    why: why bytes and operations are not known.
    """

    steps: int = 0
    rows: float = 0.0
    tokens: float = 0.0
    operations: list[Operation] = []
    lines: list[str] = []
    seconds: list[float] = []
    why: str = ""
    limits: MachineLimits | None = None


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The program of a model, known without its weights."""

    nodes: list[Node]
    cache: Cache


class OperationMeter:
    """Times steps when it is asked to.

    Args:
        ctx: its engine is asked, its configuration says which program that runs.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._one_at_a_time = asyncio.Lock()
        self._shapes: Shapes | None = None
        self._limits: MachineLimits | None = None

    async def report(self, with_limits: bool) -> Report:
        """Time the next steps.

        Args:
            with_limits: measure the machine first, which takes half a second of all cores.

        Raises:
            EngineDead: the engine is down.
            Overloaded: another server process is timing steps.
        """
        async with self._one_at_a_time:
            if with_limits:
                threads = self._ctx.config.device.num_threads or usable_cores()
                self._limits = await asyncio.to_thread(measure_limits, threads)
            call = self._ctx.engine.call
            await call("profile_operations", STEPS)
            end = time.monotonic() + SECONDS
            while time.monotonic() < end and not all(await call("has_timed_operations")):
                await asyncio.sleep(INTERVAL)
            [found] = await call("operation_times")
            if found is None:
                raise Overloaded("Steps are being timed for another page; try again.")
            if not found["steps"]:
                return Report(limits=self._limits)
            [[text]] = await call("describe")
            return await asyncio.to_thread(self._make, found, text.splitlines())

    def _make(self, found: dict[str, Any], lines: list[str]) -> Report:
        loads = [
            StepLoad.of(step["computed"], step["new"], step["logits"]) for step in found["steps"]
        ]
        n, why = len(loads), ""
        try:
            self._shapes = self._shapes or shapes_of(self._ctx.config)
        except ModelError as e:
            why = e.message
        # A program with adapters follows the other one.
        timings = [timing for timing in found["timings"] if timing[1]]
        seconds = [nanoseconds / 1e9 / n for _, _, nanoseconds in timings]
        names = [name for name, _, _ in timings]
        shapes = self._shapes
        if shapes is not None and names[:-1] != [node.op for node in shapes.nodes]:
            shapes, why = None, "the steps ran another program than the model's own"
        works = [Work(name) for name in names] if shapes is None else works_of(shapes, loads)
        return Report(
            steps=n,
            rows=sum(load.sequences for load in loads) / n,
            tokens=sum(load.tokens for load in loads) / n,
            operations=self._by_kind(works, seconds),
            lines=lines[: len(names) - 1],
            seconds=seconds,
            why=why,
            limits=self._limits,
        )

    def _by_kind(self, works: Sequence[Work], seconds: Sequence[float]) -> list[Operation]:
        """Longest first."""
        kinds: dict[str, Operation] = {}
        for work, taken in zip(works, seconds, strict=True):
            kind = kinds.setdefault(work.label, Operation(work.label, 0, 0.0, 0.0, 0.0, None))
            kind.count += 1
            kind.seconds += taken
            kind.bytes += work.bytes
            kind.operations += work.operations
            if self._limits is not None and (work.bytes or work.operations):
                kind.least = (kind.least or 0.0) + work.roofline(self._limits)
        return sorted(kinds.values(), key=lambda kind: -kind.seconds)


def works_of(shapes: Shapes, loads: Sequence[StepLoad]) -> list[Work]:
    """Work of each operation in the mean of some steps; the last one is sampling."""
    found = []
    for node in (*shapes.nodes, None):
        window = node.layer.window if node is not None and isinstance(node.layer, KVLayer) else 0
        each = [
            work_of(node, msgspec.structs.replace(load, window=window or 0), shapes.cache)
            for load in loads
        ]
        n = len(each)
        total_bytes, total = sum(w.bytes for w in each), sum(w.operations for w in each)
        found.append(dataclasses.replace(each[0], bytes=total_bytes / n, operations=total / n))
    return found


def shapes_of(config: EngineConfig) -> Shapes:
    """Raises ModelError for a model whose program is not known in advance."""
    checkpoint = open_checkpoint(resolve_source(config.model, config.load))
    info = checkpoint.model_info
    dense = dense_format(config.model.dtype, info.dtype)
    layers = kv_layers(info)
    numbers = kv_format(config.cache, dense, info, layers)
    nodes = program(checkpoint, dense, numbers, config.model.quantized_activations)
    token_bytes = [
        layer.cache(numbers).token_bytes for layer in layers if isinstance(layer, KVLayer)
    ]
    return Shapes(nodes, Cache(sum(token_bytes) / max(len(token_bytes), 1), numbers))
