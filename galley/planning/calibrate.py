"""Measures this machine with the real kernels, a few seconds for each format of weights, and keeps
the result in the cache folder.

A Llama with the sizes of the planned model runs synthetic steps, each operation timed. Its weights
are zeros, with which every format can be filled; in bf16 they are random, which takes up to 5 %
longer where arithmetic is the limit (AMX).
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.config.resolve import Machine as Host
from galley.kernels.backend import Dense, open_backend
from galley.kernels.ops import Weight
from galley.kernels.weight_format import WeightFormat
from galley.kernels.weights import PackedWeight, WeightMemory
from galley.kv.format import KVFormat
from galley.layers.shapes import ShapeSource
from galley.layers.weight_specs import Matrix
from galley.models.decoder import Stage
from galley.models.registry import model_spec
from galley.planning.limits import beyond_caches, measure_limits
from galley.planning.machine import THIS, Machine
from galley.planning.program import Sizes
from galley.planning.simulate import HostTimes, host_times
from galley.planning.steps import Shape, SyntheticSteps
from galley.runner.cache_files import cache_root

log = logging.getLogger(__name__)

ARCHITECTURE = "LlamaForCausalLM"
#: Rows of the decode steps that are measured, and tokens of the prompts. Kernels compute rows in
#: blocks of 16 or 32, so that one row more than full blocks may take as long as another full one:
#: both sides of such leaps are measured, and of larger steps one in the middle of a block.
ROWS = (1, 4, 8, 16, 17, 32, 33, 48, 49, 64, 65)
PROMPTS = (80, 81, 136, 392, 1000)
#: Tokens in the KV cache of each row.
CONTEXT = 256
#: Share of the peak rates that kernels without a measured speed reach.
_SHARE = 0.6
#: Columns (hidden, intermediate) and logits beyond which speeds no longer change much.
_HIDDEN, _INTERMEDIATE, _VOCAB = 4096, 12288, 49152
#: Bytes of small bf16 numbers.
_RANDOM = np.random.default_rng(0).normal(0, 0.02, 4096).astype(bfloat16).view(np.uint8)


class Speed(msgspec.Struct):
    """Measurements with one format of weights."""

    read: float
    rates: dict[str, list[tuple[float, float]]]
    op_seconds: float
    element_seconds: float
    sample_seconds: float


class Measured(msgspec.Struct):
    """The contents of the cache file."""

    peak: dict[str, float]
    host: HostTimes
    formats: dict[str, Speed] = {}


class _Weights(ShapeSource):
    """A `WeightSource` of zeros, in bf16 of random numbers, in large pages as an engine's."""

    def __init__(self, fmt: WeightFormat) -> None:
        super().__init__()
        self._format = fmt
        self._memory = WeightMemory()

    def matrix(self, matrix: Matrix) -> list[Weight]:
        shape = matrix.num_outputs, matrix.num_inputs
        data = self._memory.allocate(self._format.num_bytes(shape))
        # Also zeros are written: in pages of their own, not one page that stays in the caches.
        numbers = _RANDOM if self._format.name == "bf16" else np.zeros_like(_RANDOM)
        for start in range(0, len(data), len(numbers)):
            part = data[start : start + len(numbers)]
            part[:] = numbers[: len(part)]
        return [PackedWeight(self._format, shape, data)]

    def vector(self, vector: Any) -> NDArray[np.float32]:
        return np.ones(super().vector(vector).shape, np.float32)

    def constant(
        self, shape: tuple[int, ...], compute: Callable[[], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        return np.ascontiguousarray(compute(), np.float32)


def this_machine(
    formats: Sequence[WeightFormat],
    numbers: KVFormat,
    sizes: Sizes,
    threads: int,
    fresh: bool = False,
    notify: Callable[[str], None] = log.info,
) -> Machine:
    """The machine that runs this, with the speed of `formats`.

    Args:
        numbers: of the KV cache.
        sizes: of the model.
        threads: that compute.
        fresh: measure again what is in the cache.
        notify: told before something is measured.
    """
    path = cache_root() / f"machine-{_signature(threads)}.json"
    measured = None if fresh else _read(path)
    known = {} if measured is None else measured.formats
    missing = [fmt for fmt in formats if _name(fmt, numbers, sizes) not in known]
    if measured is None or missing:
        notify(f"measuring this machine with {len(missing)} formats of weights, some seconds each")
        if os.getloadavg()[0] > threads:
            notify("other programs are computing: what is measured may be too slow (--fresh)")
    if measured is None:
        limits = measure_limits(threads)
        measured = Measured(limits.peak, host_times(threads))
    for fmt in missing:
        measured.formats[_name(fmt, numbers, sizes)] = measure(fmt, numbers, sizes, threads)
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(msgspec.json.encode(measured))
        part.replace(path)
    return _machine(measured, [_name(fmt, numbers, sizes) for fmt in formats], threads)


def calibration(
    formats: Sequence[WeightFormat], numbers: KVFormat, sizes: Sizes, threads: int
) -> Callable[[], Machine]:
    """A function that measures this machine now, in memory that is allocated once: memory that is
    freed goes back to the host of a virtual machine, which slows the next seconds down."""
    peak = measure_limits(threads).peak
    steps = {_name(fmt, numbers, sizes): _steps(fmt, numbers, sizes, threads) for fmt in formats}

    def now() -> Machine:
        speeds = {name: _speed(found) for name, found in steps.items()}
        return _machine(Measured(peak, host_times(threads), speeds), list(steps), threads)

    return now


def measure(fmt: WeightFormat, numbers: KVFormat, sizes: Sizes, threads: int) -> Speed:
    """Time the operations of steps whose weights have this format."""
    return _speed(_steps(fmt, numbers, sizes, threads))


def _steps(fmt: WeightFormat, numbers: KVFormat, sizes: Sizes, threads: int) -> SyntheticSteps:
    """A model of these sizes whose weights have this format."""
    dense: Dense = "f32" if fmt.name == "f32" else "bf16"
    backend = open_backend("cpu", dense, threads, kv=numbers)
    longest = CONTEXT + max(PROMPTS)
    config = _config(fmt, sizes)
    info = ModelInfo(ARCHITECTURE, config, config["vocab_size"], longest, "bfloat16")
    model = model_spec(info).build(_Weights(fmt), Stage(longest))
    return SyntheticSteps(model, backend, numbers, _shapes())


def _shapes() -> list[Shape]:
    """The steps that are measured, those of few rows first."""
    decodes = [Shape(rows, CONTEXT, 1) for rows in ROWS]
    return [*decodes, *(Shape(1, 0, tokens) for tokens in PROMPTS)]


def _speed(steps: SyntheticSteps) -> Speed:
    speed = Speed(0.0, {}, 0.0, 0.0, 0.0)
    small: list[tuple[float, float]] = []
    for shape, found in steps.means(_shapes()).items():
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        read = np.zeros(2)
        for work, seconds in found:
            attends = work.weights.startswith("attention")
            if work.label == "sample":
                if shape.rows == ROWS[-1]:
                    speed.sample_seconds = seconds / (shape.rows * steps.vocab)
            elif not work.weights and work.label != "embedding":
                small.append((work.elements, seconds))
            elif work.weights and (attends or work.rows == shape.tokens):
                for key in filter(None, (work.matrix, work.weights)):
                    totals[key][0] += work.operations
                    totals[key][1] += seconds
            if work.weights and not attends:
                read += work.bytes, seconds
        if shape.tokens == 1:
            speed.read = float(read[0] / read[1])
            speed.op_seconds = float(np.mean([seconds for _, seconds in small]))
        for key, (operations, seconds) in totals.items():
            rows = shape.new if key.startswith("attention") else shape.tokens
            speed.rates.setdefault(key, []).append((rows, operations / seconds))
    for key, curve in speed.rates.items():
        speed.rates[key] = _smooth(curve)
    elements, times = np.array(small).T
    many = elements >= np.quantile(elements, 0.8)
    speed.element_seconds = float(
        np.median(np.maximum(times[many] - speed.op_seconds, 0) / elements[many])
    )
    return speed


def _config(fmt: WeightFormat, sizes: Sizes) -> dict[str, Any]:
    """The config.json of a Llama of these sizes, with so many layers that the caches hold as much
    of its weights as in a step of the model: of its bytes, or of more than the caches hold."""
    heads, kv_heads, head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim
    hidden, inner = min(sizes.hidden, _HIDDEN), min(sizes.intermediate, _INTERMEDIATE)
    shapes = [(2 * inner, hidden), (hidden, inner), (hidden, heads * head_dim)]
    shapes.append(((heads + 2 * kv_heads) * head_dim, hidden))
    layer = sum(fmt.num_bytes(shape) for shape in shapes)
    vocab = min(sizes.vocab, _VOCAB)
    others = max(min(beyond_caches(), sizes.weights) - fmt.num_bytes((vocab, hidden)), 1)
    return {
        "architectures": [ARCHITECTURE],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": min(sizes.layers, -(-others // layer)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
    }


def _smooth(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """One speed for each number of rows, the median where several were measured."""
    by_rows: dict[float, list[float]] = defaultdict(list)
    for rows, rate in curve:
        by_rows[rows].append(rate)
    return sorted((rows, median(rates)) for rows, rates in by_rows.items())


def _machine(measured: Measured, names: Sequence[str], threads: int) -> Machine:
    speeds = [measured.formats[name] for name in names]
    host = Host.detect()
    return Machine(
        name=THIS,
        title=f"this machine: {threads} threads of {_cpu_model()}",
        memory=host.available_memory,
        read=max(speed.read for speed in speeds),
        peak={name: rate * _SHARE for name, rate in measured.peak.items()},
        rates={key: curve for speed in reversed(speeds) for key, curve in speed.rates.items()},
        op_seconds=speeds[0].op_seconds,
        element_seconds=speeds[0].element_seconds,
        sample_seconds=speeds[0].sample_seconds,
        step_seconds=measured.host.step,
        row_seconds=measured.host.row,
        request_seconds=measured.host.request,
        sources=("measured here with the kernels that serve",),
    )


def _name(fmt: WeightFormat, numbers: KVFormat, sizes: Sizes) -> str:
    return f"{fmt} {numbers} {sizes}"


def _signature(threads: int) -> str:
    """Of this processor, the kernels and the number of threads."""
    native = find_spec("galley.kernels._native")
    assert native is not None
    assert native.origin is not None
    stat = Path(native.origin).stat()
    isa = os.environ.get("GALLEY_CPU_ISA", "")
    text = f"{_cpu_model()} {threads} {isa} {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _read(path: Path) -> Measured | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measured)
    except (OSError, msgspec.DecodeError):
        return None
