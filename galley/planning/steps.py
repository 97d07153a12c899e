"""Native steps of a model without an engine, timed as a whole or per operation.

Steps are synthetic: rows with a given number of cached and of new tokens, each with its own KV
blocks, and random token ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, RequestTable
from galley.config.cores import usable_cores
from galley.config.resolve import from_kwargs
from galley.kernels.arena import aligned_bytes
from galley.kernels.backend import Backend, Model, StepLimits, open_backend
from galley.kernels.cpu import CpuExecutable
from galley.kernels.ops import KVLayer
from galley.kernels.program import Node
from galley.kv.format import KVFormat
from galley.loader import open_checkpoint, resolve_source
from galley.models.decoder import Stage
from galley.models.footprint import kv_layers
from galley.planning.work import Cache, Work, work_of
from galley.runner.device import dense_format
from galley.runner.kv_format import kv_format
from galley.runner.load import load_model
from galley.runner.sampler import SamplingTable

BLOCK_SIZE = 16
#: Of `SyntheticSteps.means`, in each round: seconds for which steps of a shape run before they are
#: timed (in the first round, and where a step is shorter), and for which they are timed, but at
#: least so many steps.
_WARM, _TIMED, _REPETITIONS = 0.02, 0.02, 1
#: Fewest rounds, and seconds after which no further one begins.
_ROUNDS, _SECONDS = 3, 2.5


@dataclass(frozen=True)
class Shape:
    """Identical rows of a step: `context` tokens computed before, `new` tokens in this step."""

    rows: int
    context: int
    new: int

    @property
    def sequences(self) -> int:
        return self.rows

    @property
    def tokens(self) -> int:
        return self.rows * self.new

    @property
    def logits(self) -> int:
        return self.rows

    @property
    def cached(self) -> int:
        """Tokens whose K and V are read, including the new ones."""
        return self.rows * (self.context + self.new)

    @property
    def visible(self) -> int:
        """Pairs of a new token and a token it attends to."""
        return self.rows * (self.new * self.context + self.new * (self.new + 1) // 2)


@dataclass
class Columns:
    """`kernels.backend.StepInputs`."""

    slots: I32
    num_new: I32
    num_logits: I32
    num_sampled: NDArray[np.int32]


@dataclass(frozen=True)
class Timed:
    """An operation of a step and its median seconds. `node` is None for sampling."""

    node: Node | None
    seconds: float


def written_zeros(size: int) -> NDArray[np.uint8]:
    """Aligned bytes with pages of their own, not one page of zeros that stays in the caches."""
    data = aligned_bytes(size, zeros=True)
    data[:] = 0
    return data


def _repeat(times: int, seconds: float) -> Iterator[None]:
    """Yield at least so many times, and until the seconds have passed."""
    begin = time.perf_counter()
    while times > 0 or time.perf_counter() - begin < seconds:
        yield
        times -= 1


class SyntheticSteps:
    """A model with its weights, sized for every shape to measure.

    Args:
        numbers: of the KV cache.
    """

    def __init__(
        self, model: Model, backend: Backend, numbers: KVFormat, shapes: list[Shape]
    ) -> None:
        longest = max(shape.context + shape.new for shape in shapes)
        rows = max(shape.rows for shape in shapes)
        self.kv_layers, self.vocab = list(model.kv_layers), model.vocab_size
        tokens = max(shape.tokens for shape in shapes)
        executable = backend.build(model, StepLimits(tokens, rows, rows))
        assert isinstance(executable, CpuExecutable)
        self.executable = executable
        layout = executable.kv_layout(BLOCK_SIZE)
        self.table = RequestTable(rows, -(-longest // BLOCK_SIZE) * BLOCK_SIZE, layout.groups)
        blocks = max(self._blocks(shape).size for shape in shapes)
        self.executable.allocate_kv(1 + blocks, layout, written_zeros)
        self.kv_bytes_per_token = layout.bytes_per_token
        with_tokens = sum(isinstance(layer, KVLayer) for layer in self.kv_layers)
        self.cache = Cache(self.kv_bytes_per_token / max(with_tokens, 1), numbers)
        rng = np.random.default_rng(0)
        self.table.token_ids[:] = rng.integers(0, model.vocab_size, (rows, 1))
        self._sampling = SamplingTable(rows, model.vocab_size, 0)
        self.executable.bind(self.table, self._sampling.columns)

    def columns(self, shape: Shape) -> Columns:
        """Set the table up for a step of this shape; every row yields one token."""
        rows = shape.rows
        self.table.num_computed[:rows] = shape.context
        self.table.num_tokens[:rows] = self.table.num_prompt[:rows] = shape.context + shape.new
        blocks = self._blocks(shape)
        blocks[:] = np.arange(1, 1 + blocks.size).reshape(blocks.shape)
        return Columns(
            np.arange(rows, dtype=np.int32),
            np.full(rows, shape.new, np.int32),
            np.ones(rows, np.int32),
            np.ones(rows, np.int32),
        )

    def _blocks(self, shape: Shape) -> I32:
        """The part of the block tables that a step of this shape uses."""
        length = shape.context + shape.new
        width = max((group.table_width(length) for group in self.table.groups), default=0)
        return self.table.block_tables[:, : shape.rows, :width]

    def seconds(self, shape: Shape, repetitions: int) -> list[float]:
        """Seconds of whole steps, forward and sampling. The first step, a warm-up, is left out."""
        step = self.columns(shape)
        times = []
        for _ in range(repetitions + 1):
            begin = time.perf_counter()
            self.executable.run(step, sample=True)
            times.append(time.perf_counter() - begin)
        return times[1:]

    def operations(
        self, shape: Shape, repetitions: int, before: Callable[[], object] = lambda: None
    ) -> list[Timed]:
        """Time of each operation, the median of the repetitions, in program order. `before` is
        called before each of them."""
        self._profiled(shape, 1)  # a warm-up
        times = np.median(self._profiled(shape, repetitions, before=before), axis=0)
        return [Timed(node, float(s)) for node, s in zip(self._nodes, times, strict=True)]

    def means(self, shapes: Sequence[Shape]) -> dict[Shape, list[tuple[Work, float]]]:
        """The work and the mean seconds of each operation, and of sampling, in steps of each shape.

        Not the median: a step takes the sum of its operations, late ones included. All shapes run
        in each round, and every other round in reverse order, so that a machine that becomes slower
        affects each alike; short steps run after others of their shape, so that the caches hold
        what they hold in a server.
        """
        runs: dict[Shape, list[NDArray[np.float64]]] = {shape: [] for shape in shapes}
        for number, _ in enumerate(_repeat(_ROUNDS, _SECONDS)):
            for shape in shapes if number % 2 == 0 else reversed(shapes):
                if not runs[shape] or runs[shape][-1].sum(axis=1).min() < _WARM:
                    self._profiled(shape, 1, _WARM)
                runs[shape].append(self._profiled(shape, _REPETITIONS, _TIMED))
        means = {shape: np.concatenate(found).mean(axis=0) for shape, found in runs.items()}
        return {
            shape: [
                (work_of(node, shape, self.cache), float(seconds))
                for node, seconds in zip(self._nodes, times, strict=True)
            ]
            for shape, times in means.items()
        }

    @property
    def _nodes(self) -> list[Node | None]:
        """The operations of a step; None is sampling."""
        return [*self.executable.nodes, None]

    def _profiled(
        self,
        shape: Shape,
        repetitions: int,
        seconds: float = 0.0,
        before: Callable[[], object] = lambda: None,
    ) -> NDArray[np.float64]:
        """[steps, operations] seconds of steps, as `_repeat` counts them."""
        step = self.columns(shape)
        runs = []
        for _ in _repeat(repetitions, seconds):
            before()
            self.executable.profile(True)
            self.executable.run(step, sample=True)
            runs.append([nanoseconds for _, _, nanoseconds in self.executable.timings()])
        self.executable.profile(False)
        return np.array(runs) / 1e9


class StepBench(SyntheticSteps):
    """Steps of a model that is loaded as an engine would load it.

    Args:
        engine: engine flags by their Python names (`model`, `num_threads`, `dtype` …).
    """

    def __init__(self, engine: dict[str, Any], shapes: list[Shape]) -> None:
        config = from_kwargs(engine, "offline")
        checkpoint = open_checkpoint(resolve_source(config.model, config.load))
        self.model_info = checkpoint.model_info
        self.dense = dense_format(config.model.dtype, self.model_info.dtype)
        self.threads = config.device.num_threads or usable_cores()
        numbers = kv_format(config.cache, self.dense, self.model_info, kv_layers(self.model_info))
        model = config.model
        backend = open_backend(
            "cpu",
            self.dense,
            self.threads,
            model.enforce_eager,
            model.quantized_activations,
            numbers,
        )
        longest = max(shape.context + shape.new for shape in shapes)
        loaded = load_model(self.model_info, checkpoint, backend, Stage(longest))
        self.weight_bytes = loaded.weight_bytes
        super().__init__(loaded.model, backend, numbers, shapes)
